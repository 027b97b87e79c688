"""The labels of data: which rows are training and which are test, which classes a column of labels holds, and how many
labels of each class are used. Every draw is a function of a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmssl.data import columns, sources
from mmssl.errors import BadInput

if TYPE_CHECKING:
    import datasets


def with_labels(
    data: dict[str, datasets.Dataset],
    label_column: str | None = None,
    held_out: int = 1000,
    hold_out: str | None = None,
    max_samples: int = 0,
    together: str | None = None,
) -> tuple[list[datasets.Dataset], list[Tensor], list[str]]:
    """([training, test], the labels of each, the names of the classes). Reads no inputs. together: as in
    `sources.split`. Raises BadInput if labels are missing or all the same, or if a test label does not occur in
    training."""
    split = _held_out(data["train"], hold_out) if hold_out else sources.split(data, held_out, together=together)
    if set(split[0].column_names) == {"image"}:  # a folder of images without a table
        raise BadInput("the images have no labels: put those of each class into a folder of its own, at least two")
    column = columns.find(split[0].column_names, label_column, columns.LABEL, "label")
    labels, names = _labels(list(split), column)
    if max_samples:  # of all classes: a few rows may lack one
        chosen = [_some(len(part), max_samples) for part in split]
        split = [part.select(rows) for part, rows in zip(split, chosen, strict=True)]
        labels = [label[rows] for label, rows in zip(labels, chosen, strict=True)]
    return list(split), labels, names


def _held_out(rows: datasets.Dataset, condition: str) -> tuple[datasets.Dataset, datasets.Dataset]:
    column, _, values = condition.partition("=")
    if column not in rows.column_names or not values:
        raise BadInput(
            f"--hold_out {condition}: give a column of {', '.join(rows.column_names)}, as in speaker=theo,lucas"
        )
    feature = rows.features[column]
    text = feature.int2str if hasattr(feature, "int2str") else str  # a ClassLabel
    found, wanted = np.array([text(value) for value in rows[column]]), [value.strip() for value in values.split(",")]
    held, known = np.isin(found, wanted), sorted(set(found.tolist()))
    if unknown := [value for value in wanted if value not in known]:
        raise BadInput(f"--hold_out {condition}: no row has {unknown[0]!r}; {column} holds {columns.named(known)}")
    if held.all():
        raise BadInput(f"--hold_out {condition} holds out all {len(held)} rows: training needs some")
    return rows.select(np.flatnonzero(~held)), rows.select(np.flatnonzero(held))


def _labels(parts: list[datasets.Dataset], column: str) -> tuple[list[Tensor], list[str]]:
    import datasets

    kind = parts[0].features[column]
    if not isinstance(kind, (datasets.Value, datasets.ClassLabel)):
        raise BadInput(f"--label_column {column} holds {kind}, not one label per row; name another column")
    if column not in parts[1].column_names:
        raise BadInput(
            f"--label_column {column}: the test data has no such column, only {', '.join(parts[1].column_names)}"
        )
    values = [list(part[column]) for part in parts]
    for what, of_part in zip(("training", "test"), values, strict=True):
        refuse_missing(of_part, column, what)
    known = sorted(set(values[0]))
    if fractions := [value for value in known if isinstance(value, float) and not value.is_integer()]:
        raise BadInput(
            f"--label_column {column} holds fractions such as {fractions[0]:g}: a quantity, not classes; name another "
            "column"
        )
    if len(known) < 2:
        raise BadInput(
            f"--label_column {column}: every training row has the label {known[0]!r}; a probe needs two classes"
        )
    if len(known) > len(values[0]) / 2:
        raise BadInput(
            f"--label_column {column}: {len(known)} different values in {len(values[0])} rows cannot be classes; name "
            "another column"
        )
    if unknown := set(values[1]) - set(known):
        raise BadInput(f"--label_column {column}: no training row has the test label {min(unknown)!r}")
    feature, number = parts[0].features[column], {value: i for i, value in enumerate(known)}
    names = [feature.int2str(value) if isinstance(feature, datasets.ClassLabel) else str(value) for value in known]
    return [torch.tensor([number[value] for value in of_part]) for of_part in values], names


def refuse_missing(values: list, column: str, what: str) -> None:
    """Raise BadInput if a row has no label. what: the rows are, as in "training"."""
    missing = [row for row, value in enumerate(values) if value in (None, "", -1) or value != value]  # NaN
    if missing:
        raise BadInput(
            f"--label_column {column}: {len(missing)} {what} rows have no label, row {missing[0]} first (an empty text "
            "and -1 count as none)"
        )


def _some(rows: int, at_most: int) -> list[int]:
    """A random choice that is always the same. Not the first rows: those are often all of one class."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return order[:at_most].sort()[0].tolist()


def numbered(rows: datasets.Dataset, label_column: str | None, names: list[str], target: str) -> Tensor:
    """(rows,) int64: the index of each label in `names`, the classes of other data. target: --target_dataset, for the
    error. Raises BadInput if a label is missing or is none of these classes."""
    import datasets

    label_column = columns.find(rows.column_names, label_column, columns.LABEL, "label")
    feature = rows.features[label_column]
    text = feature.int2str if isinstance(feature, datasets.ClassLabel) else str
    refuse_missing(list(rows[label_column]), label_column, "target test")
    found = [text(value) for value in rows[label_column]]
    if unknown := sorted(set(found) - set(names)):
        raise BadInput(
            f"--target_dataset {target}: its label {unknown[0]!r} is none of {', '.join(names)}, the source's classes"
        )
    return torch.tensor([names.index(each) for each in found])


def subset(label: Tensor, amount: str, seed: int) -> Tensor:
    """(rows,) int64, sorted: a stratified draw. amount: "10%" takes that part of each class, "20" that many of each.

    Drawn with `seed`; every class keeps at least one. Raises BadInput if `amount` is neither.
    """
    try:
        fraction = float(amount.removesuffix("%")) / 100 if amount.endswith("%") else None
        each = None if fraction is not None else int(amount)
    except ValueError:
        fraction, each = None, 0
    if (fraction is not None and not 0 < fraction <= 1) or (each is not None and each < 1):
        raise BadInput(f"--labels {amount}: give a percentage of the training labels (10%) or a number per class (20)")
    generator, chosen = torch.Generator().manual_seed(seed), []
    for c in label.unique():
        rows = (label == c).nonzero()[:, 0]
        wanted = each if fraction is None else max(1, round(fraction * len(rows)))
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:wanted]])
    return torch.cat(chosen).sort()[0]
