"""Contact sheet of an audit: a picture with one row for each suspect. A row shows the prints of the suspect."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from fingerprint_accel.data.inspection import draw_minutiae
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.evaluation.audit.suspects import KINDS, Suspect
from fingerprint_accel.outputs import PICTURE, mark

MOST = 48  # largest number of suspects on the sheet
COLUMNS = 6  # largest number of prints that are shown for a suspect
SIDE = 256  # side of a print on the sheet, pixels
HEAD, LABEL = 26, 18  # heights of the text above a suspect and above its prints, pixels
AT_FAULT, OTHER = (176, 58, 0), (110, 110, 110)


def shown(suspects: list[Suspect]) -> list[Suspect]:
    """Choose the suspects to show: the most suspicious of each kind, `MOST` (48) in total.

    All kinds get equally many places. Places that a rare kind does not need go to the other kinds.
    """
    kinds: dict[str, list[Suspect]] = {}
    for suspect in suspects:
        kinds.setdefault(suspect.kind, []).append(suspect)
    turns = sorted((place, number) for number, those in enumerate(kinds.values()) for place in range(len(those)))
    chosen = sorted((number, place) for place, number in turns[:MOST])
    lists = list(kinds.values())
    return [lists[number][place] for number, place in chosen]


def suspect_sheet(shards: Shards, suspects: list[Suspect]) -> bytes:
    """Draw the suspicious prints of an audit as a PNG file. Minutiae are drawn if a finding is about minutiae.

    Args:
        shards: the dataset.
        suspects: all suspects; `shown` chooses which are drawn.
    """
    lines = shown(suspects)
    width = SIDE * max([3, *(min(COLUMNS, len(suspect.rows)) for suspect in lines)])
    height = HEAD + LABEL + SIDE
    sheet = Image.new("RGB", (width, max(1, len(lines)) * height + HEAD), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    title = f"{len(lines)} of {len(suspects)} suspects" if suspects else "no suspects"
    draw.text((4, 5), f"{shards.folder.name}: {title}", fill="black", font=font)
    for number, suspect in enumerate(lines):
        top = HEAD + number * height
        draw.rectangle((0, top, width, top + HEAD - 4), fill=(232, 232, 232))
        more = f" ({len(suspect.rows) - COLUMNS} more prints)" if len(suspect.rows) > COLUMNS else ""
        text = f"{KINDS[suspect.kind][0]}: {suspect.why}{more}"
        draw.text((4, top + 3), text, fill="black", font=font)
        for column, row in enumerate(suspect.rows[:COLUMNS]):
            fault = column < (suspect.at_fault or len(suspect.rows))
            colour = AT_FAULT if fault else OTHER
            label = f"{shards.key_of_finger[shards.fingers[row]]}  impression {shards.impressions[row]}"
            draw.text((column * SIDE + 4, top + HEAD), _fitting(draw, font, label), fill=colour, font=font)
            sheet.paste(_picture(shards, row, suspect), (column * SIDE, top + HEAD + LABEL))
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text("Software", mark(PICTURE))
    sheet.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _picture(shards: Shards, row: int, suspect: Suspect) -> Image.Image:
    """Draw the image of a print, with its minutiae if the suspect is about minutiae.

    Args:
        shards: the dataset.
        row: row of the print.
        suspect: suspect that the print belongs to.
    """
    picture = Image.fromarray(np.ascontiguousarray(shards.image(row))).convert("RGB")
    if suspect.kind.startswith("template"):
        draw_minutiae(ImageDraw.Draw(picture), shards, row, 0, 0)
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _fitting(draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, label: str) -> str:
    """Cut characters off the start of a label until it fits above a print. The end of a label differs between prints.

    Args:
        draw: drawing context, which measures the text.
        font: font of the label.
        label: text to shorten.
    """
    while draw.textlength(label, font=font) > SIDE - 10:
        label = "…" + label.lstrip("…")[1:]
    return label
