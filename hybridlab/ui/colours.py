"""The colours of the pictures: ARM is teal and AMD orange everywhere."""

ARM, AMD, GREY, RED, GREEN, SLATE = "#0b7a75", "#c2571a", "#8a8f98", "#c62828", "#1a7f37", "#455a64"
ARCH_COLOURS = {"arm64": ARM, "amd64": AMD}


def faint(colour: str) -> str:
    """The same colour, let through: for what lies behind something else."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"
