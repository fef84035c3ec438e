"use strict";
// Copy buttons and the filter of the table of plans; without JavaScript both are hidden and every table is complete.
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = button.dataset.copy;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1200);
  });
}
for (const box of document.querySelectorAll("input[data-filter]")) {
  box.hidden = false;
  const rows = document.querySelectorAll(`#${box.dataset.filter} tbody tr`);
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
for (const details of document.querySelectorAll("details.plain")) details.open = false;
