"""Model cards, rendered from provenance records, so that no figure is typed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template

TRAINED = Path(__file__).with_name("card.md.jinja")


def model_card(record: dict[str, Any], template: Path = TRAINED) -> str:
    """Markdown text of the card; a figure that the record lacks is an error."""
    card = Template(template.read_text(encoding="utf-8"), undefined=StrictUndefined, keep_trailing_newline=True)
    return str(card.render(record))
