"""The bench of lesson 13: every method on the pocket model, with the same data, the same budget and the same care.

What is equal for all
- the comparisons: pairs of responses of the reference, labelled by a judge;
- the budget: STEPS updates of TEXTS responses each, be they 12 pairs, 24 single responses or 3 groups of 8;
- the care: four settings each, learning rate times the method's own knob (four learning rates where there is none),
  tried once at the middle size on data of its own, and chosen by two rules: held-out likelihood of the chosen texts,
  which is -KL(p+ || policy) up to a constant, and win rate. A policy is judged by what it was chosen for.

What cannot be equal, and is reported
- SFT reads 24 chosen responses where DPO reads 12 pairs, so it goes through the data twice as often;
- KTO's baseline needs a second forward pass; reverse KL has to draw its own responses;
- EXO from rewards, preference distillation and reverse KL use a reward model. It is linear in the words of a response
  and in the words together with the prompt, fitted to the same comparisons by the Bradley–Terry likelihood: it sees the
  text, not the features that the judge reads. EXO's groups of 8 are made of the responses of the comparisons.

Test data are drawn anew for each seed and size. Before the other two sizes each method runs with the settings that its
likelihood chose; at the middle size, with those of both rules.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError

if TYPE_CHECKING:
    from torch import Tensor

STEPS, TEXTS = 40, 24
SIZES, MIDDLE = (72, 288, 1152), 288
SEEDS = range(5)
JUDGES = ("bradley_terry", "cyclic")
TUNING_SEED = 1000  # of the one run of each setting; the seeds of the bench are others
# Responses to each of the 24 prompts, and comparisons, in a measurement. One run decides about a setting: it gets more.
MEASURED = {"validation": (24, 300), "test": (16, 150)}
GROUP = 8
RIDGE = 3.0  # the best of 0.1, 0.3, 1, 3, 10 on validation comparisons

RATES, FOUR_RATES = (3e-4, 1e-3), (1e-4, 3e-4, 1e-3, 3e-3)
BETAS = (0.1, 1.0)

# name: (objective, the knob, its values, other settings). Settings that are not named are the course's defaults.
METHODS: dict[str, tuple[str, str | None, tuple[float, ...], dict[str, Any]]] = {
    "sft": ("sft", None, (), {}),
    "dpo": ("dpo", "beta", BETAS, {}),
    "cdpo": ("cdpo", "beta", BETAS, {"label_smoothing": 0.1}),
    "ipo": ("ipo", "tau", BETAS, {}),
    "simpo": ("simpo", "beta", (2.0, 20.0), {"gamma": 0.5}),
    "kto": ("kto", "beta", BETAS, {"kl": "mismatched"}),
    "bco": ("bco", "beta", BETAS, {"delta": "batch"}),
    "exo_pref": ("exo_pref", "beta", BETAS, {"label_smoothing": 1e-3}),
    "exo_rw": ("exo_rw", "beta_policy", BETAS, {}),
    "tr_dpo": ("dpo", "beta", BETAS, {}),  # the reference moves: MOVES
    "pmle": ("pmle", "gamma", BETAS, {}),
    "preference_distillation": ("preference_distillation", "gamma", BETAS, {}),
    "reverse_kl": ("reverse_kl", "beta", BETAS, {"gamma": 0.0}),
    "ddro": ("ddro", "wall_distance", (0.01, 0.3), {"t": 0.5, "past_wall": "tangent"}),
    "rdro": ("rdro", None, (), {"alpha": 0.5}),
    "rdro_pooled": ("rdro_pooled", None, (), {"alpha": 0.5}),
    "bpo": ("bpo", "beta", BETAS, {"divergence": "sba", "lam": 0.5, "s": 4.0}),
}
MOVES = {"alpha": 0.6, "every": 8}
ROWS = {"group": TEXTS // GROUP, "unpaired": TEXTS, "chosen only": TEXTS, "on-policy": TEXTS}  # else pairs
RULES = {"by_likelihood": "chosen_log_prob", "by_wins": "win_rate"}


def candidates(method: str) -> list[dict[str, Any]]:
    """The four settings of a method: learning rate and knob (None where it has none)."""
    _, knob, values, _ = METHODS[method]
    if knob is None:
        return [{"learning_rate": rate, "knob": None} for rate in FOUR_RATES]
    return [{"learning_rate": rate, "knob": value} for rate in RATES for value in values]


# -------------------- data


@functools.cache
def _world(judge: str) -> Any:
    from course_utils.worlds import pocket

    # Both judges share one reference model, and what is kept of it.
    return pocket.load_world(judge) if judge == JUDGES[0] else _world(JUDGES[0]).with_judge(judge)


def _seed(seed: int, *purpose: object) -> int:
    from course_utils.training.settings import derived_seed

    return derived_seed(seed, "bench", *purpose) % 2**31


@functools.lru_cache(maxsize=8)
def _pairs(judge: str, count: int, seed: int) -> Any:
    from course_utils import preferences

    return preferences.draw_pairs(_world(judge), count, seed=_seed(seed, "pairs", count))


@functools.lru_cache(maxsize=8)
def _held_out(judge: str, part: str, seed: int) -> tuple[Any, Tensor, Tensor]:
    """Comparisons that nothing was trained on, and the reference's log-probabilities of both sides."""
    from course_utils import preferences

    world = _world(judge)
    pairs = preferences.draw_pairs(world, MEASURED[part][1], seed=_seed(seed, part, "pairs"))
    return (
        pairs,
        world.log_prob(None, pairs.prompt, pairs.chosen),
        world.log_prob(None, pairs.prompt, pairs.rejected),
    )


# -------------------- the reward model


class RewardOfWords:
    """A reward that is linear in the words of a response, and in which words answer which prompt.

    Fitted to comparisons by the Bradley–Terry likelihood with a quadratic pull to zero (a convex problem).
    """

    def __init__(self, pairs: Any, world: Any, ridge: float = RIDGE) -> None:
        import torch

        self._tokenizer, self._size = world.tokenizer, len(world.tokenizer)
        self._place = {prompt: number for number, prompt in enumerate(world.prompts)}
        read = self.read(pairs.prompt, pairs.chosen) - self.read(pairs.prompt, pairs.rejected)
        self.weights = torch.zeros(read.shape[1], dtype=read.dtype, requires_grad=True)
        optimiser = torch.optim.LBFGS([self.weights], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            fit = torch.nn.functional.softplus(-(read @ self.weights)).sum()
            total = (fit + 0.5 * ridge * self.weights.square().sum()) / len(read)
            total.backward()
            return total

        optimiser.step(loss)
        self.weights.requires_grad_(False)

    def read(self, prompts: Any, responses: Any) -> Tensor:
        """What is counted: [N, words + prompts * words]."""
        import torch

        table = torch.zeros(len(responses), self._size * (1 + len(self._place)))
        ids = self._tokenizer(list(responses), add_special_tokens=False)["input_ids"]
        for row, (prompt, words) in enumerate(zip(prompts, ids, strict=True)):
            for word in words:
                table[row, word] += 1
            table[row, [self._size * (1 + self._place[prompt]) + word for word in set(words)]] = 1
        return table

    def __call__(self, prompts: Any, responses: Any) -> Tensor:
        """The reward of each response."""
        return (self.read(prompts, responses) @ self.weights).double()


@functools.lru_cache(maxsize=8)
def _reward_model(judge: str, count: int, seed: int) -> tuple[RewardOfWords, float]:
    """The reward model of a data set, and the seconds of computing that it took."""
    began = time.process_time()
    model = RewardOfWords(_pairs(judge, count, seed), _world(judge))
    return model, time.process_time() - began


def groups_of(pairs: Any, reward: Any, size: int, count: int, seed: int) -> Any:
    """`count` groups of `size` responses to one prompt, taken from the responses of these comparisons.

    A prompt comes as often as it does in the comparisons; one with fewer responses than `size` repeats some.
    """
    import torch

    from course_utils.feedback import Groups

    of_prompt: dict[str, list[str]] = {}
    for prompt, *both in zip(pairs.prompt, pairs.chosen, pairs.rejected, strict=True):
        of_prompt.setdefault(prompt, []).extend(both)
    generator = torch.Generator().manual_seed(seed)
    prompts, responses = [], []
    for row in torch.randint(len(pairs), (count,), generator=generator).tolist():
        texts = of_prompt[pairs.prompt[row]]
        order: list[int] = []
        while len(order) < size:
            order += torch.randperm(len(texts), generator=generator).tolist()
        prompts.append(pairs.prompt[row])
        responses.append([texts[place] for place in order[:size]])
    every = reward([p for p in prompts for _ in range(size)], [text for group in responses for text in group])
    return Groups(prompts, responses, every.reshape(count, size))


class OwnSamples:
    """The reward of the policy's own responses, less two baselines, and a count of the tokens drawn.

    Taken off are the mean reward of the prompt's responses in the comparisons, and the mean over the OTHER responses of
    the batch: neither changes the expected gradient.
    """

    def __init__(self, model: RewardOfWords, pairs: Any) -> None:
        self.model, self.tokens = model, 0
        chosen, rejected = model(pairs.prompt, pairs.chosen), model(pairs.prompt, pairs.rejected)
        both = ((chosen + rejected) / 2).tolist()
        seen: dict[str, list[float]] = {}
        for prompt, value in zip(pairs.prompt, both, strict=True):
            seen.setdefault(prompt, []).append(value)
        overall = sum(both) / len(both)
        self.level = {prompt: (sum(own) + overall) / (len(own) + 1) for prompt, own in seen.items()}
        self.overall = overall

    def __call__(self, prompts: Any, responses: Any) -> Tensor:
        import torch

        self.tokens += sum(len(text.split()) + 1 for text in responses)
        level = torch.tensor([self.level.get(prompt, self.overall) for prompt in prompts])
        reward = self.model(prompts, responses) - level
        return reward - (reward.sum() - reward) / (len(reward) - 1)


# -------------------- training and measuring


def trained(
    method: str,
    judge: str,
    pairs: int,
    seed: int,
    learning_rate: float,
    knob: float | None,
    steps: int = STEPS,
) -> tuple[Any, dict[str, float]]:
    """Train one policy; and what training showed: time, gradients, tokens."""
    from course_utils import objectives
    from course_utils.references import MovingReference
    from course_utils.training import OnPolicy, TrainingSettings, train

    objective, name, _, own = METHODS[method]
    kind = objectives.get(objective).feedback
    world, data = _world(judge), _pairs(judge, pairs, seed)
    policy, fitting, texts = world.new_policy(), 0.0, data.chosen if kind == "chosen only" else None
    feedback: Any = data
    if method in ("exo_rw", "preference_distillation", "reverse_kl"):
        model, fitting = _reward_model(judge, pairs, seed)
        if method == "reverse_kl":
            feedback = OnPolicy(world.prompts, OwnSamples(model, data))  # 24 of them
        elif method == "exo_rw":
            feedback = groups_of(data, model, GROUP, steps * ROWS["group"], _seed(seed, "groups", pairs))
        else:
            feedback = _scored(data, model)
    settings = TrainingSettings(
        steps=steps,
        batch_size=ROWS.get(kind, TEXTS // 2),
        learning_rate=learning_rate,
        schedule="linear",
        warmup=5,
        clip_gradient=1.0,
        seed=_seed(seed, "order", pairs),
    )
    ref = MovingReference(policy, **MOVES) if method == "tr_dpo" else None
    options = own | ({} if name is None else {name: knob})
    began = time.process_time()
    result = train(policy, feedback, objective, ref=ref, settings=settings, progress=False, **options)
    taken = time.process_time() - began
    norms = result.history.curve("gradient_norm")[1]
    facts = {
        "train_seconds": taken,
        "reward_model_seconds": fitting,
        "largest_gradient": float(norms.max()),
        "clipped": float((norms > 1).mean()),
        "tokens_learned": steps * TEXTS * _mean_tokens(texts or [*data.chosen, *data.rejected]),
        "tokens_drawn": 0.0,
    }
    if method == "reverse_kl":
        facts["tokens_learned"] = facts["tokens_drawn"] = float(feedback.reward.tokens)
    return policy, facts


def _scored(pairs: Any, model: RewardOfWords) -> Any:
    import torch

    from course_utils.feedback import Groups

    reward = torch.stack([model(pairs.prompt, pairs.chosen), model(pairs.prompt, pairs.rejected)], dim=1)
    return Groups(
        pairs.prompt, [list(both) for both in zip(pairs.chosen, pairs.rejected, strict=True)], reward
    )


def _mean_tokens(texts: list[str]) -> float:
    # A word is a token, and the end is one.
    return sum(len(text.split()) + 1 for text in texts) / len(texts)


def measured(policy: Any, judge: str, part: str, seed: int) -> dict[str, Any]:
    """A policy on data of its own: `part` is "validation" or "test". None is the untouched reference."""
    from course_utils.worlds import pocket_truth

    world, number, (per_prompt, _) = _world(judge), _seed(seed, part, "draw"), MEASURED[part]
    draw = world.draw(policy, per_prompt, number)
    judged = world.judge.preference_probability
    wins = pocket_truth.mean_win_rate(judged, draw.features, draw.prompt_index, world.reference_table())
    truth = world.kl_to_preferred(policy, per_prompt, number)
    said = draw.tokens.policy_log_probs.double()
    moved = said - world._score(None, draw.tokens.batch())
    pairs, ref_chosen, ref_rejected = _held_out(judge, part, seed)
    chosen = world.log_prob(policy, pairs.prompt, pairs.chosen)
    rejected = world.log_prob(policy, pairs.prompt, pairs.rejected)
    numbers = {
        "kl_to_truth": truth.estimate,
        "kl_to_truth_error": truth.half_width,
        "win_rate": wins.estimate,
        "win_rate_error": wins.half_width,
        "kl_to_reference": moved.mean(),
        "chosen_log_prob": chosen.mean(),
        "chosen_drift": (chosen - ref_chosen).mean(),
        "rejected_drift": (rejected - ref_rejected).mean(),
        "accuracy": ((chosen - ref_chosen) > (rejected - ref_rejected)).double().mean(),
        "entropy": -said.mean(),
        "words": draw.feature("words").double().mean(),
        "grammatical": draw.feature("grammatical").double().mean(),
        "correct": draw.feature("correct").double().mean(),
        "distinct": len(set(zip(draw.prompts, draw.responses, strict=True))) / len(draw),
    }
    rows = [prompt * per_prompt for prompt in (2, 10, 18)]
    texts = [[draw.prompts[row], draw.responses[row]] for row in rows]
    return {name: round(float(value), 5) for name, value in numbers.items()} | {"texts": texts}


def one(
    method: str, judge: str, pairs: int, seed: int, learning_rate: float | None, knob: float | None, part: str
) -> dict[str, Any]:
    """Train and measure one policy. A run that did not survive says why in "failed", and has no numbers."""
    setting = {"learning_rate": learning_rate, "knob": knob}
    own_data = 10_000 * seed + pairs  # so that no two data sizes share their test data
    if method == "reference":
        return setting | {"failed": None} | measured(None, judge, part, own_data)
    try:
        policy, facts = trained(method, judge, pairs, seed, float(learning_rate or 0), knob)
        found = measured(policy, judge, part, own_data)
    except CourseError as error:
        return setting | {"failed": error.id}
    return setting | {"failed": None} | {name: round(value, 5) for name, value in facts.items()} | found


# -------------------- the experiments


def tuning_run(method: str, judge: str, learning_rate: float, knob: float | None) -> dict[str, Any]:
    """One setting of one method, at the middle size, measured on validation data."""
    found = one(method, judge, MIDDLE, TUNING_SEED, learning_rate, knob, "validation")
    return {name: value for name, value in found.items() if name not in ("learning_rate", "knob", "texts")}


def chosen_setting(runs: list[dict[str, Any]], method: str, judge: str, rule: str) -> dict[str, Any]:
    """The setting of a method with the best validation score under a rule; a run that failed is never chosen."""
    mine = [run for run in runs if (run["method"], run["judge"]) == (method, judge) and run["failed"] is None]
    if not mine:
        raise CourseError(
            "bench-nothing-to-choose",
            f"no tuning run of {method} before the {judge} judge has numbers.",
            where="13_tuning",
            remedy="compute it: course experiments run 13_tuning; or give the method milder settings in METHODS.",
        )
    best = max(mine, key=lambda run: run[RULES[rule]])
    return {"learning_rate": best["learning_rate"], "knob": best["knob"]}


@functools.cache
def _tuning() -> list[dict[str, Any]]:
    from course_utils.experiments import results

    return results("13_tuning")


def bench_run(method: str, judge: str, pairs: int, seed: int) -> dict[str, Any]:
    """One cell of the table, trained once for each rule: {"by_likelihood": {...}, "by_wins": {...}}."""
    found: dict[str, Any] = {}
    done: dict[tuple[Any, Any], dict[str, Any]] = {}
    for rule in RULES if pairs == MIDDLE else ("by_likelihood",):
        key: tuple[Any, Any] = (None, None)
        if method != "reference":
            chosen = chosen_setting(_tuning(), method, judge, rule)
            key = (chosen["learning_rate"], chosen["knob"])
        if key not in done:
            done[key] = one(method, judge, pairs, seed, *key, "test")
            if seed:  # texts to read: of the first seed
                done[key].pop("texts", None)
        found[rule] = done[key]
    return found


def same_rate_run(method: str, judge: str, seed: int, learning_rate: float) -> dict[str, Any]:
    """A cell of the table with a learning rate that nobody chose: methods without a knob search a wider range of rates."""
    found = one(method, judge, MIDDLE, seed, learning_rate, None, "test")
    return {name: value for name, value in found.items() if name not in ("learning_rate", "knob", "texts")}


def memory_run(method: str) -> dict[str, Any]:
    """The peak memory of one training run, MB, in a process of its own: a worker's would be that of all its runs."""
    import subprocess
    import sys

    code = f"from course_utils.experiments import bench; print(bench.peak_after_training({method!r}))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return {"peak_mb": round(float(told.split()[-1]), 1)}


def peak_after_training(method: str) -> float:
    """Train for a few steps in this process, and say what it held at most, MB. "reference" loads the world and no more."""
    import torch

    torch.set_num_threads(1)
    if method == "reference":
        _world(JUDGES[0]).new_policy()
        _pairs(JUDGES[0], MIDDLE, 0)
    else:
        trained(
            method,
            JUDGES[0],
            MIDDLE,
            0,
            candidates(method)[0]["learning_rate"],
            candidates(method)[0]["knob"],
            8,
        )
    return _high_water()


def _high_water() -> float:
    """The most memory that this process has held, MB. Linux keeps it for each program; getrusage inherits the parent's."""
    import re
    import sys
    from pathlib import Path

    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if found:
            return int(found[1]) * 1024 / 1e6
    import resource  # not on Windows: there this experiment is replayed

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
