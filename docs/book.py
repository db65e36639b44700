#!/usr/bin/env python3
"""Lays out the pages for mdBook, which takes one folder and nothing outside it. In the repository they link to files beside
docs/. Those move into `repository/`, and every link with them."""

import os
import pathlib
import re
import shutil
import sys

ROOT = pathlib.Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def place(path):
    if path.is_relative_to("docs"):
        return path.relative_to("docs")
    # mdBook makes index.html of a README.md, and links to README.html.
    return "repository" / path.with_name("first-page.md" if path.name == "README.md" else path.name)


def lay_out(page, out, pages, files):
    def moved(link):
        target = pathlib.Path(os.path.normpath(page.parent / link[1]))
        # The playground is put there when the book is done.
        if target not in pages and not target.is_relative_to("docs/playground"):
            if target.suffix == ".md" or not (ROOT / target).is_file():
                sys.exit(f"{page}: {link[1]} is no page of docs/SUMMARY.md, and no file")
            files.add(target)
        return os.path.relpath(place(target), place(page).parent)

    copy = out / "pages" / place(page)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(LINK.sub(moved, (ROOT / page).read_text()))


def main(out):
    out = pathlib.Path(out)
    shutil.rmtree(out, ignore_errors=True)
    summary = pathlib.Path("docs/SUMMARY.md")
    links = LINK.findall((ROOT / summary).read_text())
    pages = [summary, *(pathlib.Path(os.path.normpath(summary.parent / link)) for link in links)]
    files = set()
    for page in pages:
        lay_out(page, out, pages, files)
    shutil.copyfile(ROOT / "docs/book.toml", out / "book.toml")
    for file in files:
        copy = out / "pages" / place(file)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, copy)


main(*sys.argv[1:])
