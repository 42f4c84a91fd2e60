"""Puts runs of the protocol together, such as one process per target and seed."""

import statistics

from .methods import BASELINES

__all__ = ["check_equal", "mean", "merge_results", "shared_options"]

# Content of results.json that runs may differ in.
_OWN = {"rows", "opts", "blockcopy", "seeds", "date", "complete", "timed", "other_policies"}
_RULE = "Runs can be put together if they differ in targets, baselines, policies and seeds only."


def merge_results(parts):
    """
    Put the rows of several runs into one. The seeds of methods that draw their blocks are put
    together; a method that draws none has to be in one of the runs only, or is taken from the first
    of those that have most targets of it.

    Args:
        parts (list[dict]): contents of results.json, of runs with the same config, data and machine
            that differ in targets, baselines, further policies or the policy's seed.

    Returns:
        dict: as of one run.

    Raises:
        ValueError: they differ in anything else, or two of them have the same seed.
    """
    first = parts[0]
    for part in parts[1:]:
        for key in sorted((first.keys() | part.keys()) - _OWN):
            check_equal(key, first.get(key), part.get(key), _RULE)
        check_equal("blockcopy", shared_options(first), shared_options(part), _RULE)
    found = {}
    for part in parts:
        for row in part["rows"]:
            found.setdefault((row["method"], row["target"]), []).append((part, row))
    rows = [_merge_row(entries) for entries in found.values()]
    # As build_methods orders them.
    order = {kind: index for index, kind in enumerate(BASELINES)}
    rows.sort(key=lambda row: (row["target"] or 0, order.get(row["method"], -1)))
    policies = [part.get("other_policies", {}) for part in parts]
    return {
        **first,
        "complete": all(part["complete"] for part in parts),
        "timed": all(part.get("timed", True) for part in parts),
        "seeds": max(len(row.get("seeds") or row.get("targets", [row])) for row in rows),
        "other_policies": {name: weights for x in policies for name, weights in x.items()},
        "rows": rows,
    }


def _merge_row(entries):
    """dict: the row that those of several runs become; ``entries`` are pairs of run and row."""
    row = entries[0][1]
    if len(entries) == 1:
        return row
    if not all("draws" in own for _, own in entries):
        raise ValueError(
            f"Two runs have the method {row['method']}, one of them made by a version that does not"
            ' write whether it draws blocks ("draws"): run it anew.'
        )
    if not row["draws"]:
        return max((own for _, own in entries), key=lambda own: len(own.get("targets", ())))
    used = []
    for part, own in entries:
        start = part["blockcopy"]["POLICY"]["SEED"]
        used += range(start, start + len(own.get("seeds", [own])))
    if len(set(used)) < len(used):
        raise ValueError(
            f"Two runs have the method {row['method']} at target {row['target']} with the same"
            " MODEL.BLOCKCOPY.POLICY.SEED; each of them needs another."
        )
    for _, own in entries:
        name = f"the policy of {row['method']}"
        check_equal(name, row.get("variant"), own.get("variant"), _RULE)
    seeds = [seed for _, own in entries for seed in own.get("seeds", [own])]
    courses, labels = ("course", "warm_course"), ("method", "target", "draws", "variant")
    names = [name for name in seeds[0] if name not in (*courses, *labels)]
    seeds = [{name: seed[name] for name in names} for seed in seeds]
    return {
        **{key: row[key] for key in labels if key in row},
        **mean(seeds),
        "seeds": seeds,
        **{
            name: [mean(points) for points in zip(*known)]
            for name in courses
            if (known := [own[name] for _, own in entries if own.get(name)])
        },
    }


def mean(values):
    """
    Args:
        values (list): numbers, or dicts of them or of dicts, all with the same keys; or None.

    Returns:
        Their mean, in the same structure; None if any of them is None.
    """
    first = values[0]
    if isinstance(first, dict):
        return {key: mean([value[key] for value in values]) for key in first}
    return None if None in values else statistics.fmean(values)


def shared_options(run):
    """
    Args:
        run (dict): content of results.json.

    Returns:
        dict: options of BlockCopy without those that runs of one protocol may differ in.
    """
    options = run.get("blockcopy", {"POLICY": {}})
    policy = {key: value for key, value in options["POLICY"].items() if key != "SEED"}
    return {**options, "POLICY": policy}


def check_equal(key, first, other, rule):
    """
    Args:
        key (str): what two runs have to agree in.
        first, other: its values.
        rule (str): a sentence for the message: why they have to.

    Raises:
        ValueError: the values differ.
    """
    found = list(_differences(key, first, other))
    if found:
        raise ValueError(f"The runs differ in {'; '.join(found)}. {rule}")


def _differences(key, first, other):
    """Yields text on every value that differs, also within dicts."""
    if isinstance(first, dict) and isinstance(other, dict):
        for name in [*first, *sorted(other.keys() - first.keys())]:
            yield from _differences(f"{key}.{name}", first.get(name), other.get(name))
    elif first != other:
        yield f"{key}: {first} and {other}"
