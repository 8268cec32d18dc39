"""One of several processes that bootstrap together into one folder. Run by test_multi_process.py."""

from __future__ import annotations

import sys
from pathlib import Path

import jax

PROCESS, COUNT, PORT = (int(argument) for argument in sys.argv[1:4])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{PORT}", COUNT, PROCESS)

from tests.bootstrapping.stand_in import Greys, SeesGrey, mesh  # noqa: E402  (devices exist only now)
from tests.bootstrapping.test_bootstrapping import asked  # noqa: E402
from vlmax.bootstrapping.bootstrapping import bootstrap  # noqa: E402

plan, ends = asked(Greys())
fail_at = int(sys.argv[5])
try:
    made = bootstrap(
        Greys(), SeesGrey(fail_at=fail_at if fail_at >= 0 else None), plan, ends, Path(sys.argv[4]), mesh(4)
    )
    assert (made is None) == (PROCESS > 0)
    print("done")
except KeyboardInterrupt:
    print("stopped")
