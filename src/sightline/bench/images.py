"""Decoding, side by side with Pillow's own way, in one run: `make bench-images`, `python -m sightline.bench.images`.

The photograph is drawn here: detail at every scale, as in nature, with grain, at 12 and 48 megapixels. Each row is a
file brought to a budget of a million pixels: CPU time (the least of some runs, so that a busy machine counts little) of
our codec and of Pillow's full decode with Lanczos, their ratio, and how far apart the pixels are. Prints a table; with
--out PREFIX writes PREFIX.json, and PREFIX.png where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pybase64
from PIL import Image

from sightline.config import ImageLimits
from sightline.images.budget import CellBudget
from sightline.images.codec import decode

BUDGET = CellBudget(cell=28, min_pixels=3136, max_pixels=1_000_000)
LIMITS = ImageLimits()

T = TypeVar("T")


def photograph(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Noise of every scale, each half as strong as the one twice as coarse, and grain of 4 levels."""
    rng = np.random.default_rng(seed)
    sum_ = np.zeros((height, width, 3), np.float32)
    columns, strength = 4, 1.0
    while columns < width:
        rows = max(2, columns * height // width)
        for channel in range(3):
            layer = Image.fromarray(rng.normal(scale=strength, size=(rows, columns)).astype(np.float32))
            sum_[..., channel] += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC))
        columns, strength = columns * 2, strength * 0.6
    sum_ *= 50 / sum_.std()
    sum_ += rng.normal(scale=4, size=(height, width, 1)).astype(np.float32)
    return Image.fromarray((sum_ + 128).clip(0, 255).astype(np.uint8))


def cpu(work: Callable[[], T], runs: int) -> tuple[T, float]:
    """What it gives, and the least CPU seconds of so many runs."""
    least = float("inf")
    for _ in range(runs):
        began = time.process_time()
        result = work()
        least = min(least, time.process_time() - began)
    return result, least


def ours(file: bytes) -> Image.Image:
    picture, rgb = decode(io.BytesIO(file), BUDGET, LIMITS)
    return Image.frombytes("RGB", (picture.served_width, picture.served_height), rgb)


def pillows(file: bytes) -> Image.Image:
    with Image.open(io.BytesIO(file)) as opened:
        return opened.convert("RGB").resize(BUDGET.serve(*opened.size)[:2], Image.Resampling.LANCZOS)


def psnr_db(one: Image.Image, other: Image.Image) -> float:
    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    return float(10 * np.log10(255**2 / max(float(np.mean(difference**2)), 1e-9)))


def files() -> Iterator[tuple[str, bytes]]:
    photo = photograph(4000, 3000)

    def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, format, **options)
        return file.getvalue()

    yield "JPEG, 12 megapixels", encoded(photo, "JPEG", quality=92)
    yield "JPEG progressive, 12 megapixels", encoded(photo, "JPEG", quality=92, progressive=True)
    yield "JPEG, 48 megapixels", encoded(photo.resize((8000, 6000), Image.Resampling.BICUBIC), "JPEG", quality=92)
    small = photo.resize((2000, 1500), Image.Resampling.LANCZOS)
    yield "JPEG, 3 megapixels", encoded(small, "JPEG", quality=92)
    yield "PNG, 3 megapixels", encoded(small, "PNG", compress_level=3)
    yield "WebP, 3 megapixels", encoded(small, "WEBP", quality=85)
    yield "TIFF LZW, 3 megapixels", encoded(small, "TIFF", compression="tiff_lzw")
    yield "AVIF, 3 megapixels", encoded(small, "AVIF", quality=75, speed=9)
    try:
        import pillow_heif  # the encoder; decoding is pi_heif's part
    except ImportError:
        return
    pillow_heif.register_heif_opener()
    yield "HEIC, 3 megapixels", encoded(small, "HEIF", quality=75)


def decoder_peak_mib(file: bytes) -> float:
    """Peak resident memory of a new process that decodes this file and nothing else."""
    command = [sys.executable, "-m", "sightline.bench.images", "--one"]
    done = subprocess.run(command, input=file, capture_output=True, check=True)
    return float(done.stdout)


def one() -> None:
    """In a process of its own: the file on stdin, and what that took at most in MiB."""
    file = io.BytesIO(sys.stdin.buffer.read())
    decode(file, BUDGET, LIMITS)
    print(_peak_mib())


def _peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count what the process was before `exec`
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024 * 1024)


def measure(runs: int) -> list[dict[str, Any]]:
    rows = []
    for name, file in files():
        seen, our_s = cpu(lambda file=file: ours(file), runs)  # type: ignore[misc]
        reference, their_s = cpu(lambda file=file: pillows(file), runs)  # type: ignore[misc]
        row = {
            "file": name,
            "bytes": len(file),
            "ours_ms": our_s * 1000,
            "pillow_ms": their_s * 1000,
            "ratio": our_s / their_s,
            "psnr_db": psnr_db(seen, reference),
            "peak_mib": decoder_peak_mib(file),
        }
        print(
            f"{name:32}{len(file) / 1e6:8.1f}{row['ours_ms']:10.0f}{row['pillow_ms']:12.0f}{row['ratio']:8.2f}"
            f"{row['psnr_db']:9.1f}{row['peak_mib']:11.0f}",
            flush=True,
        )
        rows.append(row)
    return rows


def base64_ms(runs: int) -> float:
    """For a body of 5 MB, as the intake decodes it: strictly."""
    text = pybase64.b64encode(np.random.default_rng(0).bytes(5_000_000 * 3 // 4))
    return cpu(lambda: pybase64.b64decode(text, validate=True), runs * 3)[1] * 1000


def plot(rows: list[dict[str, Any]], path: Path) -> bool:
    """A bar a file for each way; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    axes.barh(
        places - 0.2, [row["pillow_ms"] for row in rows], 0.4, label="Pillow: full decode, Lanczos", color="#b0b0b0"
    )
    axes.barh(places + 0.2, [row["ours_ms"] for row in rows], 0.4, label="Sightline", color="#2463eb")
    axes.set_yticks(places, [row["file"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("CPU ms to a million pixels")
    axes.legend()
    figure.savefig(path, dpi=110)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="PREFIX of .json and .png")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one()
    print(f"{'to a million pixels':32}{'MB':>8}{'ours ms':>10}{'Pillow ms':>12}{'ratio':>8}{'dB':>9}{'peak MiB':>11}")
    rows = measure(args.runs)
    base64 = base64_ms(args.runs)
    print(f"base64 of a body of 5 MB: {base64:.2f} ms")
    if args.out is not None:
        args.out.with_suffix(".json").write_text(json.dumps({"rows": rows, "base64_ms": base64}, indent=2) + "\n")
        if not plot(rows, args.out.with_suffix(".png")):
            print("matplotlib is not installed: no plot")
    return None


if __name__ == "__main__":
    main()
