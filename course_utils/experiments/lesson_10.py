"""The experiments of lesson 10: DDRO, DPO and SFT on the pocket model as the data grow, and runs into DDRO's wall.

And what its other rooms compute: counted comparisons, DPO's limit from win rates alone, the constant of DDRO's 1/n line,
the limits on the shipped texts of the pocket world, and one ordinary fix of the wall, a clamp.

The pocket runs compare methods at equal numbers of updates, responses in a batch and learning rate; only the number of
different comparisons changes. The rate is one at which DDRO keeps clear of its wall; it was not tuned for any method.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from course_utils.experiments import Experiment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

JUDGE = "cyclic"
STEPS, TOGETHER, LEARNING_RATE = 40, 48, 3e-4  # updates; responses in a batch
SIZES = (60, 240, 960)  # comparisons; 40 batches of 24 pairs see the smallest number sixteen times
DPO_BETAS = (1.0, 2.0, 4.0)


# -------------------- the finite part


def count_pairs(world: Any, n: int, seeds: Sequence[int]) -> Tensor:
    """How often a was chosen over b, [seeds, Y, Y], in n on-policy comparisons of a world with one prompt."""
    import numpy as np
    import torch

    ref = world.reference[0]
    cells = (2 * ref[:, None] * ref * world.preference[0]).flatten().numpy()
    drawn = [np.random.default_rng(int(seed)).multinomial(n, cells / cells.sum()) for seed in seeds]
    return torch.from_numpy(np.stack(drawn)).double().reshape(len(drawn), len(ref), len(ref))


def scores_from_win_rates(ref: Tensor, win_rates: Tensor) -> Tensor:
    """The scores s of one prompt with sum_b ref_b sigmoid(s_a - s_b) = W_a, by Newton's method: DPO's limit is ref exp(s / beta).

    They exist wherever every win rate lies strictly between 0 and 1 and the judge can be met by a Bradley–Terry judge.
    """
    import torch

    scores = torch.zeros_like(win_rates)
    for _ in range(200):
        p = torch.sigmoid(scores[:, None] - scores[None, :])
        slope = ref * (win_rates - p @ ref)
        weight = ref[:, None] * ref * p * (1 - p)
        curvature = torch.diag(weight.sum(1)) - weight
        move = torch.linalg.pinv(curvature, hermitian=True) @ slope
        scores = scores + move / max(1.0, float(move.abs().max()) / 2)
        if move.abs().max() < 1e-13:
            break
    return scores - ref @ scores


def best_beta(truth: Tensor, ref: Tensor, scores: Tensor, betas: Tensor) -> tuple[float, float]:
    """The least KL(truth || ref exp(scores / beta) / Z) of one prompt over these betas, and the beta that gives it."""
    import torch

    log_policy = torch.log_softmax(ref.log() + scores / betas[:, None], dim=-1)
    divergence = (truth * (truth.log() - log_policy)).sum(-1)
    best = int(divergence.argmin())
    return float(divergence[best]), float(betas[best])


def error_constants(world: Any) -> tuple[float, float]:
    """n times the expected KL(p+ || estimate) after n comparisons, for large n: of DDRO at t = 1/2, and of the chosen frequencies.

    One comparison adds -1/p+ at its chosen and +1/p- at its rejected response to the gradient of DDRO's loss in the
    policy's probabilities; the Hessian is 1/p+ + 1/p- on the diagonal, and probabilities sum to one.
    """
    import torch

    chosen, rejected = (each[0] for each in (world.preferred_distribution(), world.rejected_distribution()))
    ref = world.reference[0]
    size = len(ref)
    how_often = 2 * ref[:, None] * ref * world.preference[0]  # [chosen, rejected]
    eye = torch.eye(size, dtype=ref.dtype)
    noise = (eye / chosen)[:, None, :] - (eye / rejected)[None, :, :]  # [chosen, rejected, Y]
    variance = torch.einsum("ab,aby,abz->yz", how_often, noise, noise)  # its mean is zero
    inverse = 1 / (1 / chosen + 1 / rejected)
    move = torch.diag(inverse) - inverse[:, None] * inverse / inverse.sum()
    return float(((move @ variance @ move).diagonal() / chosen).sum() / 2), (size - 1) / 2


def estimates(world: Any, counts: Tensor, betas: Tensor) -> dict[str, Tensor]:
    """KL(p+ || policy), one for each table of counts: DDRO, the chosen frequencies (SFT in a table), DPO at its best beta."""
    import torch

    from course_utils import bradley_terry
    from course_utils.worlds.finite import FiniteWorld

    truth, ref = world.preferred_distribution()[0], world.reference[0]
    total = counts.sum((1, 2))[:, None]
    chosen, rejected = counts.sum(2) / total, counts.sum(1) / total
    # One row for each table: Newton's method then fits all of them together.
    many = FiniteWorld(world.reference.expand(len(counts), -1), world.preference[0])
    fitted = many.population_minimiser("ddro", preferred=chosen, rejected=rejected)
    apart = 1 - torch.eye(len(ref), dtype=ref.dtype)
    scores = [bradley_terry.fit(each * apart).scores for each in counts]
    kl = {"ddro": (truth * (truth / fitted).log()).sum(1), "sft": (truth * (truth / chosen).log()).sum(1)}
    return kl | {"dpo": truth.new_tensor([best_beta(truth, ref, each, betas)[0] for each in scores])}


def text_limits(table: Tensor, judge: str, betas: Tensor) -> tuple[float, Tensor]:
    """KL(p+ || p_ref), and KL(p+ || DPO's limit) for each beta, when the shipped responses of each prompt are all there is."""
    import torch

    from course_utils.worlds import pocket_judges, pocket_truth

    prompts, per_prompt = table.shape[:2]
    prefers = pocket_judges.judge_named(judge).preference_probability
    numbers = torch.arange(prompts).repeat_interleave(per_prompt)
    rates = pocket_truth.win_rates(prefers, table.flatten(0, 1), numbers, table).reshape(prompts, -1)
    todo, limits = 0.0, torch.zeros_like(betas)
    for row in rates:
        # Responses with one win rate have one score: a hundred different ones stand for a thousand.
        w, count = (1e-9 * (row * 1e9).round()).unique(return_counts=True)
        ref, truth = count.double() / per_prompt, 2 * w * count / per_prompt
        log_policy = torch.log_softmax(ref.log() + scores_from_win_rates(ref, w) / betas[:, None], -1)
        todo += float((truth * (truth / ref).log()).sum()) / prompts
        limits += (truth * (truth.log() - log_policy)).sum(-1) / prompts
    return todo, limits


def ddro_clamped(
    policy: Tensor, ref: Tensor, preferred: Tensor, t: float = 0.5, distance: float = 1e-3
) -> Tensor:
    """DDRO with the log-ratio of rejected responses held at `distance` before the wall: finite, and flat beyond."""
    import torch

    from course_utils import objectives

    log_ratio = policy - ref
    held = torch.where(preferred, log_ratio, log_ratio.clamp(max=math.log(1 / t) - distance))
    return objectives.ddro(
        held, torch.zeros_like(held), preferred, t=t, past_wall="tangent", wall_distance=1e-5
    )


# -------------------- the pocket model


@functools.cache
def _world() -> Any:
    from course_utils.worlds import pocket

    return pocket.load_world(JUDGE)


@functools.cache
def _pairs(count: int, seed: int) -> Any:
    """So many comparisons; the smaller numbers are the first rows of the largest."""
    import torch

    from course_utils import preferences

    every = preferences.draw_pairs(_world(), max(SIZES), seed=1000 + seed)
    return every.take(torch.arange(count))


def _settings(seed: int, rows: int, learning_rate: float, steps: int = STEPS) -> Any:
    from course_utils.training import TrainingSettings

    return TrainingSettings(
        steps=steps,
        batch_size=rows,
        learning_rate=learning_rate,
        schedule="linear",
        clip_gradient=1.0,
        seed=seed,
    )


def as_data_grow(method: str, pairs: int, seed: int, beta: float | None = None) -> dict[str, Any]:
    """Train one policy on so many comparisons of the cyclic judge, and measure KL(p+ || policy) on one common sample."""
    from course_utils.training import train

    world, policy = _world(), _world().new_policy()
    own: dict[str, Any] = {} if beta is None else {"beta": beta}
    if method == "ddro":
        own = {"past_wall": "tangent"}
    rows = TOGETHER if method == "ddro" else TOGETHER // 2
    settings = _settings(seed, rows, LEARNING_RATE)
    history = train(policy, _pairs(pairs, seed), method, settings=settings, progress=False, **own).history
    found = {
        "kl_to_preferred": world.kl_to_preferred(policy, per_prompt=60, seed=3).estimate,
        "first_loss": history.curve("loss")[1][0],
        "last_loss": history.last("loss"),
        "largest_gradient": history.curve("gradient_norm")[1].max(),
    }
    sample = world.draw(policy, 1, seed)
    texts = [[sample.prompts[row], sample.responses[row]] for row in (2, 10, 18)]
    return {name: round(float(value), 5) for name, value in found.items()} | {"texts": texts}


def token_log_ratios(world: Any, policy: Any, prompt: str, response: str) -> tuple[list[str], Tensor]:
    """The tokens of one response, its end included, and what training did to the log-probability of each."""
    import torch

    from course_utils.encoding import encode

    batch = encode(world.tokenizer, [prompt], [response])
    ids, columns = batch.input_ids[0], batch.response_mask[0].nonzero().flatten()

    @torch.no_grad()
    def log_probs(model: Any) -> Tensor:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[0].double()
        return torch.log_softmax(logits[columns - 1], dim=-1).gather(1, ids[columns, None])[:, 0]

    words = [world.tokenizer.decode([number]) for number in ids[columns].tolist()]
    return words, log_probs(policy.model) - log_probs(world.model)


def gradients_at_the_wall(world: Any, policy: Any, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Log-ratios of a batch, and two gradients of DDRO with the tangent: of the whole batch, and without its worst row."""
    import torch

    from course_utils import objectives
    from course_utils.encoding import encode
    from course_utils.logprobs import sequence_log_probs

    encoded = encode(world.tokenizer, batch.prompt, batch.response)
    with torch.no_grad():
        ref = sequence_log_probs(world.model, encoded)
    now = sequence_log_probs(policy.model, encoded)
    losses = objectives.ddro(now, ref, batch.preferred, past_wall="tangent")
    share = torch.where(batch.preferred, 1 / batch.preferred.sum(), 1 / (~batch.preferred).sum())
    log_ratio = (now - ref).detach()
    worst = torch.where(batch.preferred, -math.inf, log_ratio).argmax()
    others = torch.arange(len(losses)) != worst
    parameters = [p for p in policy.parameters() if p.requires_grad]
    found = []
    for rows in (torch.ones_like(others), others):
        parts = torch.autograd.grad((losses * share)[rows].sum(), parameters, retain_graph=True)
        found.append(torch.cat([part.flatten() for part in parts]))
    return log_ratio, found[0], found[1]


def to_the_wall(world: Any, feedback: Any, learning_rate: float, seed: int) -> tuple[Any, Any, Any]:
    """Train with plain DDRO until it raises: the policy as it was then, the history, and the batch it was on (None if it survived)."""
    from course_utils.errors import CourseError
    from course_utils.training import train
    from course_utils.training.order import DataOrder

    policy = world.new_policy()
    settings = _settings(seed, TOGETHER, learning_rate)
    try:
        history = train(policy, feedback, "ddro", settings=settings, progress=False).history
        return policy, history, None
    except CourseError as error:
        if error.id != "ddro-past-the-wall":
            raise
        history = error.history
    order = DataOrder(len(feedback), TOGETHER, seed, feedback.preferred)
    return policy, history, feedback.take(order.batch(len(history)))


def into_the_wall(learning_rate: float, seed: int) -> dict[str, Any]:
    """One run of plain DDRO: whether and when it ends, on which text and token, and what the gradient does there."""
    import torch

    world = _world()
    feedback = _pairs(max(SIZES), seed).unpaired()
    policy, history, batch = to_the_wall(world, feedback, learning_rate, seed)
    norms = torch.as_tensor(history.curve("gradient_norm")[1])
    if batch is None:
        return {"step": None, "usual_norm": round(float(norms.median()), 4)}
    log_ratio, whole, others = gradients_at_the_wall(world, policy, batch)
    worst = int(torch.where(batch.preferred, -math.inf, log_ratio).argmax())
    prompt, response = batch.prompt[worst], batch.response[worst]
    words, parts = token_log_ratios(world, policy, prompt, response)
    culprit = whole - others
    found = {
        "step": len(history) + 1,
        "log_ratio": float(log_ratio[worst]),
        "past": int(((log_ratio >= math.log(2)) & ~batch.preferred).sum()),
        "preferred_past": int(((log_ratio >= math.log(2)) & batch.preferred).sum()),
        "mean_rejected": float(log_ratio[~batch.preferred].mean()),
        "truth": 2 * float(world.win_rate_of_responses([prompt], [response])),
        "share": float(parts.max() / parts.sum()),
        "usual_norm": float(norms.median()) if len(norms) else float(others.norm()),
        "norm": float(whole.norm()),
        "others_norm": float(others.norm()),
        "cosine": float(whole @ culprit / (whole.norm() * culprit.norm())),
    }
    rounded = {k: v if isinstance(v, int) else round(v, 5) for k, v in found.items()}
    tokens = [[word, round(float(part), 4)] for word, part in zip(words, parts, strict=True)]
    return rounded | {"prompt": prompt, "response": response, "tokens": tokens}


_METHODS: list[dict[str, Any]] = [
    {"method": "ddro"},
    {"method": "sft"},
    *[{"method": "dpo", "beta": beta} for beta in DPO_BETAS],
]

EXPERIMENTS = (
    Experiment(
        "10_into_the_wall",
        into_the_wall,
        grid=[{"learning_rate": rate, "seed": seed} for seed in range(8) for rate in (1e-3, 3e-4)],
        about="Plain DDRO on the pocket model at two learning rates: when it ends, on which text and token, and how.",
    ),
    Experiment(
        "10_as_data_grow",
        as_data_grow,
        grid=[
            {**each, "pairs": pairs, "seed": seed}
            for seed in range(4)
            for pairs in SIZES
            for each in _METHODS
        ],
        about="DDRO, DPO at three betas and SFT on the pocket model under a cyclic judge: KL(p+ || policy) as data grow.",
    ),
)
