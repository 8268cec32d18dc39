"""One of several processes that run evaluations together; prints the scores. Run by test_multi_process.py."""

from __future__ import annotations

import json
import sys

import jax

PROCESS, COUNT, PORT = (int(argument) for argument in sys.argv[1:])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{PORT}", COUNT, PROCESS)

from tests.evaluation import multi_process_tasks  # noqa: E402  (devices exist only now)
from tests.evaluation.stand_in import Pictures, context, random_pictures  # noqa: E402
from vlmax.evaluation.retrieval import Retrieval  # noqa: E402
from vlmax.evaluation.zero_shot import ZeroShot  # noqa: E402

examples = random_pictures(37, 4, captions=lambda rng: rng.integers(1, 4), label=lambda i, rng: i % 5)
source = Pictures(examples, broken=(3, 36))
scores = Retrieval(source, captions=2, batch_size=16).run(context())
scores |= ZeroShot(source, class_names=tuple("abcde"), batch_size=16).run(context())
scores |= multi_process_tasks.run()
print(json.dumps(scores))
