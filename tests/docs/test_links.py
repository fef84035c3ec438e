"""No page links to what is not there."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from parts.pages import ROOT, pages

FENCE = re.compile(r"^(```+).*?^\1\s*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(
    r"!?\[[^\]]*\]\((?P<target>[^)\s]+)(?:\s+\"[^\"]*\")?\)|(?:href|src|srcset)=\"(?P<attribute>[^\"]+)\""
)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them, and of `id="…"`."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    names = set(re.findall(r'(?:id|name)="([^"]+)"', text))
    for heading in HEADING.findall(text):
        words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        names.add(f"{slug}-{count}" if count else slug)
    return names


def broken(page: Path) -> list[str]:
    text = CODE.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))
    lost = []
    for link in LINK.finditer(text):
        target = link["target"] or link["attribute"]
        if re.match(r"[a-z]+:", target):
            if not re.match(r"https?://[\w.-]+\.\w+|mailto:", target):
                lost.append(target)
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / unquote(path)).resolve() if path else page
        if not file.exists() or not file.is_relative_to(ROOT) or (anchor and anchor not in anchors(file)):
            lost.append(target)
    return lost


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert not (lost := broken(page)), f"{page.relative_to(ROOT)} links to what is not there: {', '.join(lost)}"


def test_what_is_broken_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_links.ROOT" if __name__ == "test_links" else f"{__name__}.ROOT", tmp_path)
    page = tmp_path / "a.md"
    page.write_text(
        "# One, two!\n## `code` of\n## One, two!\n[x](b.md) [y](#one-two) [z](#one-two-1) [c](#code-of) [w](#none) ![p](no.svg)\n"
        '<img src="none.png"> `[in](code.md)`\n```\n[in](block.md)\n```\n[up](../x.md) [web](https://example.org/a)\n'
    )
    (tmp_path / "b.md").write_text("b\n")
    assert broken(page) == ["#none", "no.svg", "none.png", "../x.md"]


def test_every_page_is_reached_from_the_readme() -> None:
    seen, left = set[Path](), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        text = CODE.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))
        targets = [(m["target"] or "").partition("#")[0] for m in LINK.finditer(text)]
        left += [(page.parent / unquote(t)).resolve() for t in targets if t and ":" not in t]
    assert not (lost := set(pages()) - seen), f"no link leads to {sorted(p.relative_to(ROOT).as_posix() for p in lost)}"
