"""The description on a package index: README.md without links that lead nowhere there.

An index shows the text without the project's files, and the repository has no public address that
they could be linked to.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

IMAGE = re.compile(r"!\[[^\]]*\]\((?!https?://)[^)]*\)\n*")
LINK = re.compile(r"\[([^\]]*)\]\((?!https?://|#)[^)]*\)")


class ReadmeHook(MetadataHookInterface):
    """Gives hatchling the field `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the field."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": LINK.sub(r"\1", IMAGE.sub("", text))}
