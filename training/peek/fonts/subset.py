"""Cut fonts down to what `peek` reads: capitals, digits and a few signs, some KB each.

    python -m training.peek.fonts.subset FOLDER     # holds the unpacked Debian packages named in README.md

The subsets are modified versions, so they carry names of their own, as the Open Font License asks.
"""

from __future__ import annotations

import string
import sys
from pathlib import Path
from typing import Final

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

KEPT: Final = string.ascii_uppercase + string.digits + " .,:-!?%"
HERE: Final = Path(__file__).parent

SOURCES: Final = (
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf",
    "liberation2/LiberationSans-Regular.ttf", "liberation2/LiberationSans-Bold.ttf",
    "liberation2/LiberationSerif-Regular.ttf", "liberation2/LiberationSerif-Bold.ttf",
    "liberation2/LiberationMono-Bold.ttf",
    "Roboto-Regular.ttf", "Roboto-Bold.ttf", "Roboto-Black.ttf", "RobotoSlab-Regular.otf", "RobotoSlab-Bold.otf",
    "OpenSans-Regular.ttf", "OpenSans-Bold.ttf", "Lato-Regular.ttf", "Lato-Black.ttf",
    "FiraCode-Regular.ttf", "FiraCode-Bold.ttf", "JetBrainsMono-Medium.ttf",
    "Quicksand-Medium.ttf", "Quicksand-Bold.ttf", "Carlito-Regular.ttf", "Carlito-Bold.ttf",
    "Caladea-Regular.ttf", "Caladea-Bold.ttf", "truetype/play/Play-Regular.ttf", "Dosis-SemiBold.otf",
    "Cabin-Regular.otf", "Cabin-Bold.otf", "CharisSIL-Regular.ttf", "LinLibertine_R.otf", "LeagueSpartan-SemiBold.otf",
)  # fmt: skip


def subset(source: Path, target: Path) -> None:
    """Write the glyphs of KEPT, without hints or layout features, under a name of our own."""
    font = TTFont(source, recalcTimestamp=False)
    options = Options(
        hinting=False, layout_features=[], name_IDs=[0, 1, 2, 4, 6, 13, 14], notdef_outline=True, desubroutinize=True
    )
    subsetter = Subsetter(options)
    subsetter.populate(text=KEPT)
    subsetter.subset(font)
    for record in font["name"].names:
        if record.nameID in (1, 4, 6):
            record.string = f"PeekTraining-{target.stem}"
    font.save(target)


def main() -> None:
    folder = Path(sys.argv[1])
    for number, name in enumerate(SOURCES):
        (source,) = folder.rglob(name)
        subset(source, HERE / f"{number:02}{source.suffix}")


if __name__ == "__main__":
    main()
