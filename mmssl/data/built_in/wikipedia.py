"""About a hundred English Wikipedia articles without a download: the dump excerpt that gensim ships with its tests.

gensim's wikicorpus removes the mark-up; case and punctuation are kept, one paragraph per line. For word vectors, masked
language models and anything else that reads text. Or the paragraphs of the longest articles, labelled with their
article: a topic, for evaluation.
"""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterator
from pathlib import Path

from mmssl.data.atomic import whole
from mmssl.errors import BadInput

DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
LICENCE = "Text: Wikipedia contributors, CC BY-SA 4.0, from the dump excerpt in gensim's test data."
HELD_OUT = 20  # every twentieth article
TOPICS = 10  # articles whose paragraphs are labelled
FEWEST_WORDS = 20  # of such a paragraph
EVERY = 6  # one paragraph in six of each article is held out

CARD = """---
license: cc-by-sa-4.0
language: [en]
task_categories: [fill-mask, text-generation]
pretty_name: Some Wikipedia articles
---
# Some Wikipedia articles

{train} training and {test} held-out articles of the English Wikipedia: `title` and `text`, without mark-up, one
paragraph per line. Built by `mmssl.data.built_in.wikipedia` from the dump excerpt in gensim's test data.

Text: Wikipedia contributors, CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/); each article's authors are
listed in its history at https://en.wikipedia.org.
"""

CARD_OF_PARAGRAPHS = """---
license: cc-by-sa-4.0
language: [en]
task_categories: [text-classification]
pretty_name: Paragraphs of Wikipedia articles
---
# Paragraphs of Wikipedia articles

{train} training and {test} held-out paragraphs of ten articles of the English Wikipedia: `text` and `label`, the title
of the article. Every sixth paragraph of each article is held out. Built by `mmssl.data.built_in.wikipedia` from the
dump excerpt in gensim's test data.

Text: Wikipedia contributors, CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/); each article's authors are
listed in its history at https://en.wikipedia.org.
"""


def articles() -> Iterator[tuple[str, str]]:
    """(title, text) of each article, redirects and lists of links left out. Raises BadInput without gensim."""
    try:
        from gensim.corpora.wikicorpus import extract_pages, filter_wiki
        from gensim.test.utils import datapath
    except ImportError as error:
        raise BadInput("the built-in Wikipedia articles come with gensim; pip install gensim") from error
    if not Path(datapath(DUMP)).exists():
        raise BadInput(f"the installed gensim lacks {DUMP}; install gensim 4.4, which has it")
    with bz2.open(datapath(DUMP)) as dump:
        for title, marked_up, _ in extract_pages(dump, filter_namespaces=("0",)):
            text = _running_text(filter_wiki(marked_up))
            if len(text) > 1000 and not marked_up[:20].upper().startswith("#REDIRECT"):
                yield title, text


def build(directory: Path) -> None:
    """Write train.parquet, test.parquet and README.md: a dataset that `load_dataset` reads."""
    rows = [{"title": title, "text": text} for title, text in articles()]
    parts = {
        "train": [row for i, row in enumerate(rows) if i % HELD_OUT],
        "test": [row for i, row in enumerate(rows) if i % HELD_OUT == 0],
    }
    _write(directory, parts, CARD)


def build_paragraphs(directory: Path) -> None:
    """The same files, with the paragraphs of the TOPICS articles that have most of them."""
    found = {title: [p for p in text.split("\n") if len(p.split()) >= FEWEST_WORDS] for title, text in articles()}
    parts: dict[str, list[dict]] = {"train": [], "test": []}
    for title in sorted(sorted(found, key=lambda title: -len(found[title]))[:TOPICS]):
        for i, paragraph in enumerate(found[title]):
            parts["train" if i % EVERY else "test"].append({"text": paragraph, "label": title})
    _write(directory, parts, CARD_OF_PARAGRAPHS)


def _write(directory: Path, parts: dict[str, list[dict]], card: str) -> None:
    from datasets import Dataset

    with whole(directory) as place:
        for name, part in parts.items():
            Dataset.from_list(part).to_parquet(place / f"{name}.parquet")
        (place / "README.md").write_text(card.format(**{name: len(part) for name, part in parts.items()}))


def _running_text(text: str) -> str:
    """The text without headings, list marks, remains of tables and empty lines; one paragraph per line."""
    text = re.sub(r"'{2,}", "", text)  # bold, italic
    lines = (re.sub(r"^[*#:;|!\s]+", "", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if len(line) > 40 and not line.startswith(("=", "{", "}", "[[")))
