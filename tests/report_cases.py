"""A small comparison whose values can be computed manually, for the tests of its report."""

import numpy as np
from PIL import Image

from restormixer_arch.compare.results import (
    Comparison,
    Competitor,
    DataSet,
    Difference,
    Latency,
    Metric,
    Picture,
    Training,
)

HOSTILE = "<script>window.hacked = 1</script>\"'><b>"
HEIGHT, WIDTH = 32, 48
MIB = 2**20


def hand_made(third=HOSTILE):
    """Return a comparison of three competitors on ``rain`` (three images) and ``night`` (one without ground truth)."""
    names = ["ours", "small", third]
    rows = {"a": (30.0, 31.0, 31.0), "b": (31.0, 30.0, 31.5), "c": (32.0, 29.0, 32.0)}
    rain = [
        picture(
            name, {"psnr": dict(zip(names, row, strict=True)), "ssim": dict(zip(names, (0.9, 0.9, 0.8), strict=True))}
        )
        for name, row in rows.items()
    ]
    night = picture("n", {m: dict.fromkeys(names, 25.0) for m in ("psnr", "ssim")}, "night").model_copy(
        update={"truth": None}
    )
    psnr = {"small": Difference(mean=-1, low=-3, high=1), third: Difference(mean=0.5, low=None, high=None)}
    level = {name: Difference(mean=0, low=None, high=None) for name in names[1:]}
    return Comparison(
        name="by hand & eye",
        machine={"processor": "abacus", "threads": 1, "versions": {"torch": "2.4", "python": "3.11"}},
        size=64,
        budget="600 iterations",
        metrics={
            "psnr": Metric(type="calculate_psnr", arguments={"crop_border": 4}),
            "ssim": Metric(type="calculate_ssim"),
        },
        competitors=competitors(names),
        datasets=[
            DataSet(name="rain", pictures=rain, difference={"psnr": psnr, "ssim": level}),
            DataSet(name="night", pictures=[night], difference={"psnr": level, "ssim": level}),
        ],
    )


def competitors(names):
    ours = {"thop_macs": 1.75e9, "peak_bytes": 300 * MIB, "flops": 4e9, "parameters": 1_500_000}
    training = Training(iterations=600, batch_size=4, seconds=120)
    return [
        Competitor(name=names[0], arch="RestorMixer", latency=latency(0.1, 0.09, 0.12), training=training, **ours),
        Competitor(
            name=names[1],
            arch="EDSR",
            latency=latency(0.05, 0.05, 0.05),
            flops=1e9,
            parameters=250_000,
            peak_bytes=200 * MIB,
        ),
        Competitor(name=names[2], arch="SwinIR", latency=latency(1.5, 1.4, 1.6), flops=2e10, parameters=12_000_000),
    ]


def latency(median, low, high):
    return Latency(median=median, low=low, high=high, runs=5)


def picture(name, values, dataset="rain"):
    """Return an image with these values, metric -> competitor -> value; the input has an SSIM of 0.5, otherwise 20."""
    some = next(iter(values.values()))
    return Picture(
        name=name,
        input=f"input/{dataset}/{name}.png",
        truth=f"truth/{dataset}/{name}.png",
        restored={competitor: f"restored/{dataset}/{number}/{name}.png" for number, competitor in enumerate(some)},
        input_values={metric: 0.5 if metric == "ssim" else 20.0 for metric in values},
        values=values,
    )


def written(comparison, folder):
    """Write the images: errors are 40 in the right half for the first competitor, 80 for the input, otherwise 0."""
    rng = np.random.default_rng(0)
    first = comparison.competitors[0].name
    for dataset in comparison.datasets:
        for each in dataset.pictures:
            truth = rng.integers(0, 160, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            ours = truth.copy()
            ours[:, WIDTH // 2 :] += 40
            save(folder / each.input, truth + np.uint8(80))
            for name, place in each.restored.items():
                save(folder / place, ours if name == first else truth)
            if each.truth:
                save(folder / each.truth, truth)
    return comparison


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
