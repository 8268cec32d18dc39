import jax
import numpy as np

from vlmax.reporting.compiles import CompileLog, Compiles


def test_counts_compiles_and_names_what_compiled_again():
    @jax.jit
    def train_step(x):
        return x * 2.0 + 1.0

    @jax.jit
    def other(x):
        return x - 3.0

    with CompileLog(watch=("train_step",)) as log:
        train_step(np.ones(3, np.float32))
        other(np.ones(3, np.float32))
        first = log.take()
        assert first.count == 2 and first.seconds > 0 and first.recompiled == ()
        train_step(np.ones(3, np.float32))
        assert log.take() == Compiles(0, 0, 0.0, ())
        train_step(np.ones(4, np.float32))
        other(np.ones(4, np.float32))
        again = log.take()
        assert again.count == 2 and again.recompiled == ("train_step",)
    other(np.ones(5, np.float32))
    assert log.take().count == 0, "a closed log listens no more"
