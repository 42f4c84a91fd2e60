"""Hooks of mkdocs.yml: pages and pictures of the site that lie outside docs/.

README.md is the home page. Links between files work on the site as they do in the repository.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# File of the repository: its page on the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "projects/BlockCopy/README.md": "protocol.md",
}
PICTURES = ("projects/BlockCopy/figures/*", "benchmarks/results/*.png")
# The target of a Markdown link or of an HTML picture.
TARGET = re.compile(r'(?<=\]\()[^)\s]+(?=\))|(?<=src=")[^"]+(?=")')
SOURCES = {page: source for source, page in PAGES.items()}


def on_files(files, config):
    """Adds the pages and pictures outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for pattern in PICTURES:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrites links between files of the repository into links between pages."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")

    def resolve(match):
        target, mark, anchor = match.group(0).partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match.group(0)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(place) is None:
            raise PluginError(f"{source} links to {target}, which is not a page of the site")
        return posixpath.relpath(place, posixpath.dirname(here) or ".") + mark + anchor

    return TARGET.sub(resolve, markdown)
