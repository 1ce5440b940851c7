"""HTML from Python values, always escaped, and the tables of the report's page."""

import base64
import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | int | Markup


def tag(element: str, /, *content: Content, **attributes: str) -> Markup:
    """An element; ``class_`` and the like lose the underscore, others become hyphens."""
    opening = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{element}{opening}>{join(content)}</{element}>")


def void(element: str, /, **attributes: str) -> Markup:
    """An element without content."""
    return Markup(tag(element, **attributes).removesuffix(f"</{element}>"))


def join(content: Iterable[Content]) -> Markup:
    """One after the other, escaped where it is not HTML."""
    return Markup(
        "".join(part if isinstance(part, Markup) else html.escape(str(part)) for part in content)
    )


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Content]]) -> Markup:
    """A table whose columns and rows have headers: the first cell of a row is its header."""
    columns = join(tag("th", name, scope="col") for name in head)
    lines = join(
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    )
    return tag(
        "div",
        tag(
            "table", tag("caption", caption), tag("thead", tag("tr", columns)), tag("tbody", lines)
        ),
        class_="wide",
        role="region",
        aria_label=caption,
        tabindex="0",
    )


def png(picture: bytes) -> str:
    """The address of a PNG that the page itself holds."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"


MOST_LESIONS = 100
_SIDES = (("R", "L"), ("A", "P"), ("S", "I"))


def headline(content: Mapping[str, Any]) -> Markup:
    """The main figures."""
    lesions = content["lesions"]
    largest = f" largest {lesions[0]['volume_ml']:.1f} ml" if lesions else ""
    processed, left_out = content["slices_processed"], content["slices_left_out"]
    figures = (
        ("Marked volume", f"{content['volume_ml']:.1f}", " ml"),
        ("Connected lesions", len(lesions), largest),
        ("Unhealthy slices", content["unhealthy_slices"], f" of {processed}"),
        ("Slices left out", left_out, " too little of a head" if left_out else ""),
    )
    return tag(
        "dl",
        *(
            tag("div", tag("dt", name), tag("dd", value, tag("small", unit)))
            for name, value, unit in figures
        ),
        class_="figures",
    )


def lesion_table(content: Mapping[str, Any]) -> Markup:
    """The lesions, largest first."""
    lesions = content["lesions"]
    if not lesions:
        return tag("p", "Nothing is marked.")
    caption = "Connected parts of the mask, largest first."
    if len(lesions) > MOST_LESIONS:
        caption += f" {len(lesions) - MOST_LESIONS} smaller ones are in the statistics alone."
    head = ("Lesion", "Volume, ml", "Voxels", "Centre, mm", "Slices", "Box, voxels of the input")
    rows = (
        (
            number,
            f"{lesion['volume_ml']:.2f}",
            lesion["voxels"],
            _location(lesion["centroid_mm"]),
            _span(lesion["levels"]),
            ", ".join(_span(ends) for ends in lesion["box"]),
        )
        for number, lesion in enumerate(lesions[:MOST_LESIONS], 1)
    )
    return table(caption, head, rows)


def slice_table(content: Mapping[str, Any]) -> Markup:
    """Decision and marked volume of every processed slice."""
    caption = (
        "Processed axial slices, from the feet up. Probability: of being unhealthy, by the "
        "calibrated decision"
    )
    if content["provenance"]["decision"] == "cosine":
        caption += "; here the cosine decides instead"
    head = ("Slice", "Height, mm", "Decision", "Probability", "Marked, ml")
    rows = (
        (
            entry["level"],
            f"{entry['position_mm']:.1f}",
            _decision(entry["unhealthy"]),
            _share(entry["probability"], entry["unhealthy"]),
            f"{entry['marked_ml']:.2f}" if entry["marked_ml"] else "–",  # noqa: RUF001
        )
        for entry in content["slices"]
    )
    return table(f"{caption}.", head, rows)


def method(content: Mapping[str, Any]) -> str:
    """Some sentences, true of this set-up."""
    made_by = content["provenance"]
    rule, conditions = made_by["anomaly_map"], made_by["conditions"]
    process = f"{conditions['encoding'].upper()} encoding, up to timestep {conditions['L']}"
    errors = "squared errors of the guided prediction"
    if rule["sub_map"] != "residual":
        errors = "squared differences of the two predictions"
    where = "t_e" if rule["t_e_ratio"] == 1 else f"{rule['t_e_ratio']:g} t_e"
    which_map = f"averaged up to {where}" if rule["anomaly_map"] == "aggregate" else f"at {where}"
    cut = "a quantile that M_t picks (Algorithm 1)"
    if made_by["threshold_rule"] == "mean-with-otsu":
        cut = f"the mean of {cut} and Otsu's threshold"
    if made_by["threshold"] is not None:
        cut = f"the fixed threshold {made_by['threshold']:g}"
    window = ""
    if made_by["neighbours_mm"]:
        window = (
            " Maps, and the statistics of the image-level decision, are averaged over slices "
            f"within {made_by['neighbours_mm']:g} mm."
        )
    if made_by["flip_tta"]:
        window += " Every second slice is flipped, left for right, before the network sees it."
    smoothed = "smoothed by a median filter"
    if radius := made_by["guided_mm"]:
        smoothed += f" and fitted to the slice's edges by a guided filter (radius {radius:g} mm)"
        if made_by["neighbours_mm"]:
            smoothed += " over these slices"
    which = (
        "Every slice"
        if made_by["every_slice"]
        else "A slice that the image-level decision calls unhealthy"
    )
    return (
        "Noise is added to each axial slice step by step, by the forward process of a diffusion "
        f"model that was trained with image-level labels alone ({process}); nothing is "
        "reconstructed. At every step the network predicts the slice twice, guided towards "
        f"“healthy” (w = {made_by['w']:g}) and unguided: t_e is where these diverge most (M_t), "
        f"and the {errors}, {which_map}, are the anomaly map H.{window} {which} is marked where H, "
        f"{smoothed}, reaches {cut}, and small components are dropped (AnoFPDM, "
        "Che et al.)."
    )


def provenance_table(content: Mapping[str, Any]) -> Markup:
    """Everything that decides the mask, as the statistics have it."""
    made_by = {key: value for key, value in content["provenance"].items() if key not in _ELSEWHERE}
    values = {
        "inputs": content["inputs"],
        "mask": content["mask"],
        **made_by,
        "seconds": content.get("seconds", "not recorded"),
    }
    caption = "All it takes to make this mask again, by the names of the statistics file."
    rows = ((name, _value(value)) for name, value in _flat("", values))
    return tag("div", table(caption, ("What", "Value"), rows), class_="words")


_ELSEWHERE = ("notes", "warnings", "volumes")


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of nested objects by their path; lists of plain values are leaves."""
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), below)
    elif isinstance(value, Sequence) and any(isinstance(item, Mapping) for item in value):
        for number, below in enumerate(value, 1):
            yield from _flat(f"{prefix}.{number}", below)
    else:
        yield prefix, value


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _location(centroid_mm: Sequence[float]) -> str:
    """A place in the patient's directions: right or left, front (A) or back, top (S) or bottom."""
    return ", ".join(
        f"{positive if mm >= 0 else negative} {abs(mm):.1f}"
        for mm, (positive, negative) in zip(centroid_mm, _SIDES, strict=True)
    )


def _span(ends: Sequence[int]) -> str:
    first, last = ends
    return str(first) if first == last else f"{first}–{last}"  # noqa: RUF001


def _decision(unhealthy: bool) -> Markup:
    name = "unhealthy" if unhealthy else "healthy"
    return tag("span", name, class_=name)


def _share(probability: float, unhealthy: bool) -> Markup:
    filled = tag("i", style=f"width:{100 * probability:.0f}%")
    kind = "unhealthy" if unhealthy else "healthy"
    return join(
        [tag("span", filled, class_=f"bar {kind}", aria_hidden="true"), f"{probability:.2f}"]
    )
