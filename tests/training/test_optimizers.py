import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.sharding.parameters import LAYERS, box, boxed, values
from vlmax.errors import InputError
from vlmax.training import patterns
from vlmax.training.groups import LayerDecay, split
from vlmax.training.optimizers import Adafactor, AdamW, Lion, Muon, Optimizer
from vlmax.training.schedules import Constant, Cosine, Linear

ALGORITHMS = [AdamW(weight_decay=0.1), Lion(), Adafactor(weight_decay=0.1), Muon()]


def run(built, params, gradients):
    """Parameters after one update for each tree of gradients."""

    @jax.jit
    def steps(params, gradients):
        state = built.transformation.init(params)
        for gradient in gradients:
            updates, state = built.transformation.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return steps(params, gradients)


@functools.cache
def first_update(optimizer):
    """(gradient, params) -> update and state over the small tree, compiled once for each optimizer."""
    transformation = optimizer.build(boxed(), 10).transformation
    return jax.jit(lambda g, p: transformation.update(g, transformation.init(p), p))


def update(optimizer, gradient=None):
    """Path -> the first update over the small tree, as numpy."""
    updates, _ = first_update(optimizer)(values(1) if gradient is None else gradient, values())
    return {path: np.asarray(leaf) for path, leaf in patterns.flatten(updates).items()}


# tests/parity/test_live_optimizers.py runs the same case beside torch itself.
WEIGHT, BIAS = [[0.5, -1.25, 2.0], [0.03125, -0.75, 1.5]], [0.25, -0.5]
WEIGHT_GRADIENT, BIAS_GRADIENT = [[0.1, -0.2, 0.3], [1e-4, -2.0, 0.0]], [0.01, -3.0]
GRADIENT_SCALES = [1, 2, -3, -4, 5]
TORCH_WEIGHT = [
    [0.4907025098800659, -1.238455057144165, 1.9862076044082642],
    [0.023426556959748268, -0.7399532794952393, 1.4955052137374878],
]
TORCH_BIAS = [0.17187075316905975, -0.42186376452445984]


def adamw_case():
    """Two parameter groups, five steps of a linear schedule, the decaying weight at a tenth of the learning rate."""
    tree = {"weight": box((2, 3), "embed", "mlp"), "bias": box((2,), "norm")}
    algorithm = AdamW(0.9, 0.98, 1e-6, weight_decay=0.2)
    optimizer = Optimizer(algorithm, Linear(0.05), lr_multipliers=(("weight", 0.1),))
    params = {"weight": jnp.asarray(WEIGHT), "bias": jnp.asarray(BIAS)}
    gradients = [
        {"weight": scale * jnp.asarray(WEIGHT_GRADIENT), "bias": scale * jnp.asarray(BIAS_GRADIENT)}
        for scale in GRADIENT_SCALES
    ]
    return run(optimizer.build(tree, 5), params, gradients)


def test_adamw_is_torchs():
    found = adamw_case()
    np.testing.assert_allclose(found["weight"], TORCH_WEIGHT, rtol=2e-6)
    np.testing.assert_allclose(found["bias"], TORCH_BIAS, rtol=2e-6)


def test_lion_is_the_papers():
    """Chen et al. 2023, algorithm 2, in numpy."""
    tree = {"w": box((4, 5), "embed", "mlp")}
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(4, 5)), rng.normal(size=(6, 4, 5))
    w, m = start.copy(), np.zeros_like(start)
    for k, g in enumerate(gradients):
        rate = 0.1 * (1 - k / 6)
        w = w - rate * (np.sign(0.9 * m + 0.1 * g) + 0.3 * w)
        m = 0.99 * m + 0.01 * g
    built = Optimizer(Lion(weight_decay=0.3), Linear(0.1)).build(tree, 6)
    found = run(built, {"w": jnp.asarray(start, jnp.float32)}, [{"w": jnp.asarray(g, jnp.float32)} for g in gradients])
    np.testing.assert_allclose(found["w"], w, rtol=1e-5, atol=1e-6)


DECAYING = {
    "image/patch/kernel", "image/positions", "image/blocks/query/kernel", "image/blocks/up/kernel", "image/conv",
    "image_projection/kernel", "text/embedding",
}  # fmt: skip


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: type(a).__name__)
def test_stacked_vectors_do_not_decay(algorithm):
    """Biases [layers, H, K] and norms [layers, D] are vectors of their layer: without a gradient they do not move."""
    zero = jax.tree.map(jnp.zeros_like, values())
    found = update(Optimizer(algorithm, Constant(0.1)), gradient=zero)
    params = patterns.flatten(values())
    assert {path for path, moved in found.items() if np.any(moved)} == DECAYING
    for path in DECAYING:
        np.testing.assert_allclose(found[path], -0.1 * algorithm.weight_decay * params[path], rtol=1e-5)


def test_decay_multipliers():
    zero, params = jax.tree.map(jnp.zeros_like, values()), patterns.flatten(values())

    def decay_of(*pairs):
        found = update(Optimizer(AdamW(weight_decay=0.2), Constant(0.5), decay_multipliers=pairs), gradient=zero)
        return {path: float(np.mean(moved / params[path]) / -0.1) for path, moved in found.items()}

    assert list(decay_of((".*", 1.0)).values()) == pytest.approx([1.0] * len(jax.tree.leaves(zero)), rel=1e-4)
    found = decay_of(("image/positions", 0.0), ("image/.*kernel", 0.5))
    assert found["image/positions"] == 0
    assert found["image/blocks/up/kernel"] == pytest.approx(0.5, rel=1e-4)
    assert found["image/conv"] == pytest.approx(1, rel=1e-4)
    assert found["image/blocks/norm/scale"] == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: type(a).__name__)
def test_learning_rate_multipliers_reach_the_update_and_its_decay(algorithm):
    plain = update(Optimizer(algorithm, Constant(0.1)))
    found = update(Optimizer(algorithm, Constant(0.1), lr_multipliers=(("text/.*", 0.25), ("image/blocks/.*", 2.0))))
    for path, moved in found.items():
        factor = 0.25 if path.startswith("text/") else 2.0 if path.startswith("image/blocks") else 1.0
        np.testing.assert_allclose(moved, factor * plain[path], rtol=1e-5, atol=1e-8)


def test_layer_wise_decay_scales_every_layer_apart():
    decay = LayerDecay("image/blocks/.*", "image/(patch/.*|positions)", 0.5)
    plain = update(Optimizer(AdamW(), Constant(0.1)))
    both = Optimizer(AdamW(), Constant(0.1), layer_decay=(decay,), lr_multipliers=(("image/.*", 10.0),))
    found, multiplied = update(Optimizer(AdamW(), Constant(0.1), layer_decay=(decay,))), update(both)
    for path, moved in found.items():
        if path.startswith("image/blocks"):
            for layer in range(LAYERS):
                np.testing.assert_allclose(moved[layer], 0.5 ** (LAYERS - layer) * plain[path][layer], rtol=1e-6)
        elif path in ("image/patch/kernel", "image/positions"):
            np.testing.assert_allclose(moved, 0.5 ** (LAYERS + 1) * plain[path], rtol=1e-6)
        else:
            np.testing.assert_array_equal(moved, plain[path])
        factor = 10 if path.startswith("image/") else 1
        np.testing.assert_allclose(multiplied[path], factor * moved, rtol=1e-5)


def stack_of(layers, shape, names):
    """A stacked parameter with a gradient for it, and the same for one layer alone, whose sizes differ by layer."""
    rng = np.random.default_rng(3)
    scale = (10.0 ** np.arange(layers) / 10 ** (layers // 2)).reshape(-1, *[1] * len(shape)) if layers < 9 else 1.0
    param, gradient = (jnp.asarray(rng.normal(size=(layers, *shape)) * scale, jnp.float32) for _ in range(2))
    return {"w": box((layers, *shape), "layers", *names)}, {"w": box(shape, *names)}, param, gradient


@pytest.mark.parametrize(
    "algorithm",
    [Muon(), Adafactor(), Adafactor(momentum=None, parameter_scale=True, b2_cap=1.0)],
    ids=["muon", "adafactor", "adafactor2018"],
)
@pytest.mark.parametrize(
    ("layers", "shape", "names"),
    [
        (4, (32, 48), ("embed", "mlp")),
        (4, (32, 2, 36), ("embed", "heads", "head_dim")),
        (4, (2, 36, 32), ("heads", "head_dim", "embed")),
        (40, (48,), ("norm",)),
    ],
)
def test_a_stack_is_updated_as_its_layers_would_be_alone(algorithm, layers, shape, names):
    """No layer sees another: not in Muon's matrices, not in Adafactor's factors (40 layers!), clipping and scales."""
    stacked, single, param, gradient = stack_of(layers, shape, names)
    optimizer = Optimizer(algorithm, Constant(0.1))

    def two_steps(tree, param, gradient):
        return run(optimizer.build(tree, 10), {"w": param}, [{"w": gradient}, {"w": gradient[..., ::-1]}])["w"]

    found = two_steps(stacked, param, gradient)
    for k in range(0, layers, max(1, layers // 4)):
        np.testing.assert_allclose(found[k], two_steps(single, param[k], gradient[k]), rtol=2e-4, atol=1e-6)


def test_muon_makes_matrices_of_all_heads_together_orthogonal():
    found = update(Optimizer(Muon(weight_decay=0.0), Constant(1.0)))
    for path, inputs in (("image/blocks/query/kernel", 32), ("image/blocks/up/kernel", 32)):
        for matrix in found[path].reshape(LAYERS, inputs, -1):
            singular = np.linalg.svd(matrix / (0.2 * max(matrix.shape) ** 0.5), compute_uv=False)
            assert np.all((singular > 0.6) & (singular < 1.3))
            np.testing.assert_allclose(np.sqrt(np.mean(matrix**2)), 0.2, rtol=0.2)


def test_muon_leaves_vectors_embeddings_and_projections_to_adam():
    muon = Muon(adam=("image/conv",))
    table = Optimizer(muon, Constant(0.1)).build(boxed(), 10).table
    rules = {(row[0], row[3]): row[1] for row in table.rows}
    assert rules[("image/blocks", "muon")] == 2
    assert [row[0] for row in table.rows if row[3] == "muon"] == ["image/blocks"]
    adam = update(Optimizer(AdamW(b2=0.95, weight_decay=0.1), Constant(0.1)))
    for path, moved in update(Optimizer(muon, Constant(0.1))).items():
        same = np.allclose(moved, adam[path], rtol=1e-5)
        assert same == (path not in ("image/blocks/query/kernel", "image/blocks/up/kernel"))
    with pytest.raises(InputError, match=r"optimizer\.algorithm\.adam\[0\].*'text/conv' hits no parameter"):
        Optimizer(Muon(adam=("text/conv",)), Constant(0.1)).build(boxed(), 10)


def test_clipping_uses_the_norm_of_all_trainable_gradients_together():
    optimizer = Optimizer(Lion(b2=0.0), Constant(0.1), clip_norm=0.5, frozen=("image/.*",))
    params, gradient = (split(values(seed), optimizer.build(boxed(), 10).frozen)[0] for seed in (0, 1))
    _, state = first_update(optimizer)(gradient, params)
    clipped = optax.tree.get(state, "mu")  # with b2 = 0 the momentum is the clipped gradient
    norm = float(optax.tree.norm(gradient))
    assert norm > 0.5
    for moment, g in zip(jax.tree.leaves(clipped), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(moment, g * 0.5 / norm, rtol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: type(a).__name__)
def test_frozen_parameters_have_no_state(algorithm):
    built = Optimizer(algorithm, Constant(0.1), frozen=("image/.*",)).build(boxed(), 10, locked=("text/.*",))
    assert {path for path, frozen in built.frozen.items() if not frozen} == {"image_projection/kernel", "log_scale"}
    trainable, frozen = split(values(), built.frozen, "bfloat16")
    assert set(patterns.flatten(trainable)) == {"image_projection/kernel", "log_scale"}
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(trainable)} == {jnp.dtype("float32")}
    state = jax.eval_shape(built.transformation.init, trainable)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) <= 2 * 16 * 32 + 16
    abstract = split(jax.eval_shape(values), built.frozen, "bfloat16")
    assert jax.tree.leaves(abstract) == jax.tree.leaves(jax.eval_shape(lambda: (trainable, frozen)))


@pytest.mark.parametrize("algorithm", [AdamW, Lion, Adafactor, Muon])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_moment_is_stored_as_asked(algorithm, dtype):
    built = Optimizer(algorithm(moment_dtype=dtype), Constant(0.1)).build(boxed(), 10)
    state = jax.eval_shape(built.transformation.init, values())
    large = {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.size >= 3 * 32 * 64}
    second = {"float32"} if algorithm is AdamW else set()
    assert large == {dtype} | second


def test_the_schedule_counts_updates():
    built = Optimizer(Lion(weight_decay=0.0), Cosine(0.1, warmup_steps=2)).build({"w": box((1,), "norm")}, 4)
    params, state = {"w": jnp.zeros(1)}, built.transformation.init({"w": jnp.zeros(1)})
    for step in range(4):
        updates, state = built.transformation.update({"w": jnp.ones(1)}, state, params)
        np.testing.assert_allclose(-updates["w"][0], built.schedule(step), rtol=1e-6)


def test_the_table_has_every_group():
    optimizer = Optimizer(
        AdamW(weight_decay=0.2),
        Constant(0.1),
        lr_multipliers=(("text/.*", 0.25),),
        layer_decay=(LayerDecay("image/blocks/.*", "image/(patch/.*|positions)", 0.5),),
        frozen=("image_projection/.*",),
    )
    table = optimizer.build(boxed(), 10).table
    assert sum(row[1] for row in table.rows) == len(jax.tree.leaves(values()))
    assert sum(row[2] for row in table.rows) == sum(leaf.size for leaf in jax.tree.leaves(values()))
    assert ("text", 1, 1280, "adamw", "0.25", "0.025", "0.2") in table.rows
    assert ("image/blocks", 2, 288, "adamw", "0.125 to 0.5", "0.0125 to 0.05", "0") in table.rows
    assert ("image_projection", 1, 512, "frozen", "-", "-", "-") in table.rows


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frozen": ("imgae/.*",)}, r"optimizer\.frozen\[0\].*'imgae/\.\*' hits no parameter"),
        ({"frozen": (".*",)}, "every parameter is frozen"),
        ({"lr_multipliers": (("decoder/.*", 0.1),)}, r"optimizer\.lr_multipliers\[0\].*hits no parameter"),
        ({"lr_multipliers": (("text/.*", 0.0),)}, r"lr_multipliers\[0\]: 0\.0.*put it into optimizer\.frozen"),
        ({"decay_multipliers": (("text/.*", -1.0),)}, r"decay_multipliers\[0\]: -1\.0"),
        ({"frozen": ("text/.*",), "lr_multipliers": (("text/.*", 0.1),)}, "hits only frozen parameters"),
        ({"lr_multipliers": ((".*", 0.1), ("text/.*", 2.0))}, "comes too late"),
        ({"layer_decay": (LayerDecay("text/.*", "image/.*", 0.5),)}, r"layer_decay\[0\]\.blocks.*not stacked"),
        ({"layer_decay": (LayerDecay("image/blocks/.*", "image/.*", 0.5),)}, "is hit twice"),
        ({"layer_decay": (LayerDecay("image/blocks/.*", "image/stem", 0.5),)}, r"layer_decay\[0\]\.stem.*hits no"),
        ({"layer_decay": (LayerDecay("image/blocks/.*", "image/patch/.*", 1.5),)}, r"rate is 1\.5"),
        ({"clip_norm": 0.0}, r"optimizer\.clip_norm is 0\.0"),
        ({"algorithm": AdamW(b2=1.0)}, r"optimizer\.algorithm\.b2 is 1\.0"),
        ({"algorithm": AdamW(eps=0.0)}, r"optimizer\.algorithm\.eps is 0\.0"),
        ({"algorithm": Lion(weight_decay=-0.1)}, r"optimizer\.algorithm\.weight_decay is -0\.1"),
        ({"schedule": Cosine(1e-3, 100)}, r"optimizer\.schedule\.warmup_steps is 100"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        Optimizer(**({"algorithm": AdamW(), "schedule": Constant(0.1)} | fields)).build(boxed(), 10)


def test_locked_patterns_must_hit_too():
    with pytest.raises(InputError, match=r"system\.locked\[0\]"):
        Optimizer(AdamW(), Constant(0.1)).build(boxed(), 10, locked=("video/.*",))


def test_layers_must_lead():
    with pytest.raises(ValueError, match="'layers' must lead"):
        Optimizer(AdamW(), Constant(0.1)).build({"w": box((4, 3), "embed", "layers")}, 10)
