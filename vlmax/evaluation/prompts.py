"""Class names and prompt templates from a JSON file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vlmax.errors import InputError, nearest

Texts = tuple[str, ...]


def prompts_from_json(
    path: str | os.PathLike[str], classes: str = "classes", templates: str = "templates"
) -> tuple[Texts, Texts]:
    """(class names, templates) from a JSON object, for `ZeroShot(class_names=..., templates=...)`.

    Args:
      path: the file.
      classes: where the list of class names stands; a dot goes one object deeper, as in `Caltech101.classes`.
      templates: where the list of templates stands, each a text with one `{}`.

    Raises:
      InputError: the file is missing or is not JSON, or a list is not there or not as described.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"reading prompts: there is no file {path}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"reading prompts: {path} cannot be read as JSON: {error}") from error
    found = _texts(path, content, classes), _texts(path, content, templates)
    wrong = [template for template in found[1] if template.count("{}") != 1]
    if wrong:
        raise InputError(f"reading prompts: {path}, {templates}: {wrong[0]!r} needs one {{}} for the class name")
    return found


def _texts(path: Path, content: object, where: str) -> Texts:
    for name in where.split("."):
        if not isinstance(content, dict) or name not in content:
            known = content if isinstance(content, dict) else ()
            raise InputError(f"reading prompts: {path} has no {where!r}, for want of {name!r}; {nearest(name, known)}")
        content = content[name]
    if not isinstance(content, list) or not content or not all(isinstance(text, str) for text in content):
        raise InputError(f"reading prompts: {path}, {where}: this should be a list of texts, not {str(content)[:80]!r}")
    return tuple(content)
