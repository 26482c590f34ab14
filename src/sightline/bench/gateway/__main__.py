"""`python -m sightline.bench.gateway`: every gateway through every case, one after the other; then the report."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

from sightline.bench.gateway import processes, report
from sightline.bench.gateway.cases import Case, cases, many_streams
from sightline.bench.gateway.gateways import SIGHTLINE, STUB, TWO_WORKERS, Gateway, Running, gateways, running
from sightline.bench.gateway.load import Told, drive
from sightline.bench.gateway.report import Measured


def measure(
    gateway: Gateway, at: Running, case: Case, *, warm_s: float, measured_s: float, cores: set[int]
) -> Measured:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    clients = spawn.Process(target=drive, args=(case, at.target, warm_s, measured_s, theirs, cores), daemon=True)
    clients.start()
    theirs.close()
    try:
        assert ours.recv() == "begin"
        before = processes.spent(at.pid)
        assert ours.recv() == "end"
        spent = processes.spent(at.pid).since(before)
        told: Told = ours.recv()
    except EOFError:
        raise SystemExit(f"The clients of {gateway.name} ended in the case {case.name!r}.") from None
    finally:
        clients.join()
    if told.wrong:
        print(f"{gateway.name} answered: {told.wrong}", file=sys.stderr)
    return report.to_measured(gateway.name, case, told, spent)


def main(args: argparse.Namespace) -> None:
    cores, load = processes.Cores.found(), os.getloadavg()[0]
    rows: list[Measured] = []

    def run(gateway: Gateway, at: Running, case: Case, measured_s: float) -> None:
        row = measure(gateway, at, case, warm_s=args.seconds / 4, measured_s=measured_s, cores=cores.others)
        rows.append(row)
        print(row.line(), flush=True)

    chosen = [case for case in cases() if not args.only or args.only in case.name]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(report.HEADER)
        with running(STUB, 0, folder, cores.gateway) as at:
            for case in chosen:
                run(STUB, at, case, args.seconds)
        with running(STUB, 0, folder, cores.others) as upstream:
            for gateway in gateways(args.peers):
                if args.gateway and args.gateway not in gateway.name:
                    continue
                with running(gateway, upstream.target.port, folder, cores.gateway) as at:
                    for case in chosen:
                        run(gateway, at, case, args.seconds)
            if not args.only or args.only in many_streams().name:
                for gateway in (SIGHTLINE, TWO_WORKERS):
                    with running(gateway, upstream.target.port, folder, cores.all) as at:
                        run(gateway, at, many_streams(), 0.0)
    print(report.to_text(rows))
    if args.out is not None:
        report.write(rows, load, args.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", default=sys.executable, help="the Python that has litellm, fastapi, httpx, uvicorn")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each case")
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--gateway", help="gateways whose name contains this")
    parser.add_argument("--out", type=Path, help="PREFIX.json and PREFIX.png are written")
    main(parser.parse_args())
