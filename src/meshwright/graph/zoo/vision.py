"""Image classifiers: ViT-L/16 and ResNet-50."""

from __future__ import annotations

from ._entry import Config, Entry

# Dosovitskiy et al. 2021, table 1 (ViT-Large, patches of 16) and table 3 (4,096 images a step).
VIT = {"layers": 24, "width": 1024, "heads": 16, "ffn": 4096, "image": 224, "patch": 16}
# He et al. 2016, table 1 (50 layers) and section 3.4 (256 images a step).
DEPTHS, WIDTHS, STEM = (3, 4, 6, 3), (256, 512, 1024, 2048), 64
CLASSES = 1000


def vit() -> Config:
    return {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        "num_hidden_layers": VIT["layers"],
        "hidden_size": VIT["width"],
        "num_attention_heads": VIT["heads"],
        "intermediate_size": VIT["ffn"],
        "image_size": VIT["image"],
        "patch_size": VIT["patch"],
        "num_labels": CLASSES,
        "problem_type": "single_label_classification",
    }


def resnet() -> Config:
    return {
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification"],
        "depths": list(DEPTHS),
        "hidden_sizes": list(WIDTHS),
        "embedding_size": STEM,
        "layer_type": "bottleneck",
        "num_labels": CLASSES,
        "problem_type": "single_label_classification",
    }


def vit_parameters() -> int:
    """Patch projection, class token and positions; blocks; final norm and classifier."""
    width, ffn = VIT["width"], VIT["ffn"]
    patches = (VIT["image"] // VIT["patch"]) ** 2
    stem = 3 * VIT["patch"] ** 2 * width + width + width + (patches + 1) * width
    block = 4 * (width**2 + width) + 2 * width * ffn + width + ffn + 4 * width
    return stem + VIT["layers"] * block + 2 * width + (width + 1) * CLASSES


def resnet_parameters() -> int:
    """A block squeezes to a quarter: 1×1, 3×3, 1×1, each with two numbers a channel of batch norm."""
    total, before = 3 * STEM * 49 + 2 * STEM, STEM
    for depth, width in zip(DEPTHS, WIDTHS, strict=True):
        inner = width // 4
        for block in range(depth):
            source = before if block == 0 else width
            total += source * inner + 9 * inner**2 + inner * width + 2 * (2 * inner + width)
            total += before * width + 2 * width if block == 0 else 0
        before = width
    return total + (before + 1) * CLASSES


ENTRIES = (
    Entry("vit-l16", "vit", vit_parameters(), 4096, 1, "Dosovitskiy et al. 2021, table 1", vit()),
    Entry("resnet-50", "resnet", resnet_parameters(), 256, 1, "He et al. 2016, table 1", resnet()),
)
