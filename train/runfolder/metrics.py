"""Registry of all recorded metrics: name, unit, definition, what each is taken over, how it is reduced over depth.

A name has the form where/what. {block} stands for block0, block1, ...; {tensor} for a weight such as block0/mlp.up,
embedding or head; {multiple} for a length of eval_lengths. A metric with one value per head is also recorded as a list,
under its name + `_by_head`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

Over = Literal["max", "mean", "min"]
File = Literal["metrics.jsonl", "timing.jsonl"]

PLACEHOLDERS = {"{block}": r"block\d+", "{tensor}": r"(?:block\d+/|loss/)?[^/]+", "{multiple}": r"\d+"}
BY_HEAD = "_by_head"


@dataclass(frozen=True)
class Metric:
    name: str
    unit: str
    definition: str
    taken_over: str
    reduced_by: Over | None = None
    """How the values of all blocks or tensors are reduced to one for W&B and TensorBoard."""
    by_head: bool = False
    histogram: bool = True
    """Whether W&B and TensorBoard also get all values over blocks or tensors, as a histogram."""
    needs: str = ""
    """Overrides of the default config that make a run record it; "" if every run does."""
    file: File = "metrics.jsonl"

    @property
    def of_each(self) -> bool:
        """Returns whether there is one such metric per block or per tensor."""
        return "{block}" in self.name or "{tensor}" in self.name

    def matches(self, name: str) -> bool:
        return _pattern(self.name, self.by_head).fullmatch(name) is not None


@cache
def _pattern(name: str, by_head: bool) -> re.Pattern[str]:
    text = re.escape(name).replace(r"\{", "{").replace(r"\}", "}")
    for placeholder, pattern in PLACEHOLDERS.items():
        text = text.replace(placeholder, pattern)
    return re.compile(text + (f"(?:{BY_HEAD})?" if by_head else ""))


def largest(values: Sequence[float]) -> float:
    """Returns the largest number, NaN if one is NaN, which `max` hides or not by their order."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def least(values: Sequence[float]) -> float:
    """Returns the smallest number, NaN if one is NaN."""
    return -largest([-value for value in values])


@cache
def metric_of(name: str) -> Metric | None:
    """Returns the registry's entry for a recorded name, or None."""
    return next((metric for metric in METRICS if metric.matches(name)), None)


LAST = "in the last row"
TOKENS, ROWS = "tokens of the batch", "batch, queries, heads"
VALIDATION = "tokens of the validation batches"

EXPERTS = "mlp=moe"

TRAINING = (
    Metric("step", "steps", "Optimizer step, from 0; the row of step -1 is the validation before training.", "-"),
    Metric("train/tokens", "tokens", "Training tokens seen so far, including this step.", "all devices"),
    Metric("train/lr", "1", "Learning rate of the step, before the parametrization's multipliers.", "-"),
    Metric("train/loss", "nats/token", "Cross-entropy before the update, whichever loss is minimised.", TOKENS),
    Metric("train/objective", "nats/token", "The minimised loss, including auxiliary terms.", TOKENS),
    Metric(
        "train/auxiliary",
        "nats",
        "The part of train/objective that routers add, summed over blocks: load balance, z-loss and distillation.",
        TOKENS,
        needs=EXPERTS,
    ),
    Metric(
        "train/accuracy",
        "1",
        "Share of answers whose largest logit is right, before the update.",
        "answers of the batch",
        needs="data=recall",
    ),
    Metric("seconds", "s", "Time of the steps since the previous row, without validation.", "-", file="timing.jsonl"),
    Metric(
        "train/tokens_per_second",
        "tokens/s",
        "Training tokens per second since the previous row, without validation.",
        "all devices",
        file="timing.jsonl",
    ),
    Metric(
        "train/flops_per_second",
        "FLOP/s",
        "Model FLOPs per second, at 6 N + 12 depth width context + 6 vocabulary width per token (Chowdhery et al. "
        "2022, PaLM, appendix B). Probes, validation and recomputation are not counted.",
        "all devices",
        file="timing.jsonl",
    ),
)

LENGTHS = "eval_lengths=[2]"
VALIDATED = (
    Metric(
        "validation/loss",
        "nats/token",
        "Cross-entropy on the fixed validation set: at initialisation (step -1), at the last step, and every "
        "eval_every steps between.",
        VALIDATION,
    ),
    Metric(
        "validation/bits_per_byte",
        "bits/byte",
        "validation/loss / (ln 2 x bytes per token of the validation split); only for text.",
        VALIDATION,
        needs="data=textmix",
    ),
    Metric(
        "validation/accuracy",
        "1",
        "Share of answers whose largest logit is right, at the same steps.",
        "answers of the validation batches",
        needs="data=recall",
    ),
    Metric(
        "validation/loss_at_{multiple}x",
        "nats/token",
        f"Cross-entropy on the validation text in sequences of that many contexts, {LAST}. Positions continue past the "
        "context; constants that mixing rules derive from the context do not change.",
        "all tokens of these sequences",
        needs=LENGTHS,
    ),
    Metric(
        "validation/loss_at_{multiple}x_tail",
        "nats/token",
        f"The same over the last context of each sequence, whose tokens all see more keys than in training, {LAST}.",
        "tokens of the last context",
        needs=LENGTHS,
    ),
    Metric(
        "validation/loss_at_{multiple}x_alone",
        "nats/token",
        f"Cross-entropy of the tail's tokens evaluated as separate sequences, as in training, {LAST}.",
        "tokens of the last context",
        needs=LENGTHS,
    ),
    Metric(
        "validation/entropy_at_{multiple}x",
        "nats",
        f"Entropy of the attention weights at that length, {LAST}.",
        "rows, heads, blocks (of several devices, the first one's)",
        needs=LENGTHS,
    ),
    Metric(
        "validation/top_weight_at_{multiple}x",
        "1",
        f"Largest share of a row of the attention weights at that length, {LAST}.",
        "rows, heads, blocks (of several devices, the first one's)",
        needs=LENGTHS,
    ),
)


def _attention(
    what: str, unit: str, definition: str, taken_over: str, reduced_by: Over, needs: str = "", histogram: bool = True
) -> Metric:
    name = f"attention/{{block}}/{what}"
    return Metric(name, unit, definition, taken_over, reduced_by, by_head=True, histogram=histogram, needs=needs)


FIT = {
    "local": "of tokens on tokens of their group",
    "read": "of latents on tokens of their group",
    "global": "of latents on latents",
    "write": "of tokens on latents of the group before",
}
"""The attentions of attention=fit."""
FIT_PROBES: tuple[tuple[str, str, str, str, Over], ...] = (
    ("logit_max", "1", "Largest logit", "batch, visible pairs, heads", "max"),
    ("entropy", "nats", "Entropy of the attention weights, mean", ROWS, "mean"),
)

ATTENTION = (
    _attention(
        "logit_max",
        "1",
        "Largest attention logit of a visible pair, after scaling and position bias, before softmax and before the cap "
        "of attention=softcap.",
        "batch, pairs, heads",
        "max",
    ),
    _attention("q_norm", "1", "L2 norm of the queries as they enter the logits, mean.", "batch, tokens, heads", "max"),
    _attention("k_norm", "1", "L2 norm of the keys as they enter the logits, mean.", "batch, tokens, heads", "max"),
    _attention(
        "weight_bound",
        "1",
        "scale ||W_q|| ||W_k||, spectral norms of a head's projections, the largest: times the largest squared norm of "
        "the layer's input, it bounds the logits. Where nothing but positions follows the projections.",
        "heads",
        "max",
        needs="qk_norm=none",
    ),
    _attention("cosine_mean", "1", "cos(q_i, k_j), mean.", "batch, visible pairs, heads", "mean"),
    _attention(
        "cosine_of_max_pair",
        "1",
        "Cosine of the pair with the largest logit of the whole batch, mean over heads.",
        "heads",
        "mean",
        histogram=False,
    ),
    _attention(
        "entropy",
        "nats",
        "-sum_j p log p, where p = |w| / sum_j |w| for each row of weights w. Means, here and below, skip rows without "
        "any weight. In contexts above 2,048 it is the only probe of the weights.",
        ROWS,
        "mean",
    ),
    _attention("top_weight", "1", "Largest p of a row, mean.", ROWS, "mean"),
    _attention("support", "keys", "Effective number of keys of a row, 1 / sum_j p^2, mean.", ROWS, "mean"),
    _attention(
        "sink_rate",
        "share",
        "Share of the sequences in which the mean of p_i1 over the first 64 rows is above 0.3 (Gu et al. 2024, arXiv "
        "2410.10781, section 3.2).",
        "sequences, heads",
        "mean",
    ),
    _attention("sink_mass", "share", "p_i1, the first key's share of a row, mean.", ROWS, "mean"),
    _attention(
        "row_sum",
        "1",
        "Sum of the signed weights of a row, mean; 1 where a rule normalizes.",
        ROWS,
        "mean",
        histogram=False,
    ),
    _attention("zero_rows", "share", "Share of the rows whose weights are all zero.", ROWS, "mean", histogram=False),
    _attention(
        "zero_weights",
        "share",
        "Share of exact zeros among the weights of visible keys.",
        ROWS,
        "mean",
        histogram=False,
    ),
    *(
        _attention(
            f"local_focus_{back}",
            "share",
            f"p_{{i, i-{back}}}, the weight of the key {back} before the query's own, mean (LocFoc of Xue et al. 2025, "
            "arXiv 2510.11602, section 4.4).",
            ROWS,
            "mean",
            histogram=False,
        )
        for back in range(4)
    ),
    Metric(
        "attention/{block}/diversity",
        "1",
        "Standard deviation of p_ij over heads, divided by their number, mean (HeadDiv of Xue et al. 2025).",
        "batch, visible pairs",
        "mean",
        histogram=False,
    ),
    _attention(
        "sink_share",
        "share",
        "Share |w| / sum |w| of the sink's key, mean. The other probes then describe the remaining weights.",
        ROWS,
        "mean",
        needs="sink=off_by_one",
    ),
    *(
        _attention(f"{part}_{what}", unit, f"{says}, {of}.", over, reduced_by, needs="attention=fit", histogram=False)
        for part, of in FIT.items()
        for what, unit, says, over, reduced_by in FIT_PROBES
    ),
    Metric("attention/logit_max", "1", "Largest attention logit of all blocks.", "blocks, batch, pairs, heads"),
    Metric("attention/entropy", "nats", "Entropy of the attention weights, mean.", "blocks, batch, queries, heads"),
    Metric("attention/entropy_min", "nats", "Entropy of the head with the lowest entropy.", "batch, queries"),
    Metric("attention/sink_rate", "share", "Sink rate, mean.", "blocks, sequences, heads"),
)


def _state(what: str, unit: str, definition: str, taken_over: str, reduced_by: Over) -> Metric:
    return Metric(
        f"state/{{block}}/{what}", unit, definition, taken_over, reduced_by, histogram=False, needs="attention=mamba"
    )


STATES = "batch, tokens, channels, state"
STATE = (
    _state("dt_max", "1", "Largest step dt of a state space: attention=mamba and mamba2.", STATES, "max"),
    _state("rate_max", "1", "Largest |dt A|.", STATES, "max"),
    _state("decay_min", "1", "Smallest decay exp(dt A), that of the fastest forgetting.", STATES, "min"),
    _state(
        "decay_max",
        "1",
        "Largest mean decay over the tokens of a sequence; below 1 if the states are stable.",
        "sequences, channels, state",
        "max",
    ),
    _state("slow", "share", "Share of the decays above 0.999.", STATES, "mean"),
    _state("rms", "1", "RMS of the states after the last token.", "batch, channels, state", "max"),
    _state("output_rms", "1", "RMS of the outputs before the gate.", "batch, tokens, channels", "max"),
)

MODEL = (
    Metric("residual/{block}/rms", "1", "RMS of the residual stream after the block.", "batch, tokens, width", "max"),
    Metric(
        "residual/{block}/kurtosis",
        "1",
        "mean_d (x - mean)^4 / (mean_d (x - mean)^2)^2 of a token, mean; 3 without a privileged basis (Elhage et al. "
        "2023).",
        "batch, tokens",
        "max",
    ),
    Metric(
        "residual/{block}/massive_max",
        "1",
        "Largest |x| / median |x| of a sequence; activations count as massive from about 1,000 (Sun et al. 2024, arXiv "
        "2402.17762).",
        "sequences",
        "max",
    ),
    Metric(
        "residual/{block}/dimension",
        "1",
        "Effective dimension d(0.8): the least number of principal components with 80 % of the variance over a "
        "sequence's tokens, of which it takes at most 64, at equal distances; mean (PanGu-pi, Wang et al. 2023, arXiv "
        "2312.17276).",
        "sequences",
        "min",
        histogram=False,
    ),
    Metric(
        "residual/{block}/diversity",
        "1",
        "Frobenius norm of a sequence's tokens minus their mean, mean (PanGu-pi).",
        "sequences",
        "min",
        histogram=False,
    ),
    Metric(
        "residual/{block}/mean_share",
        "share",
        "T |mean|^2 / sum_t |x_t|^2, the share of a sequence's stream that is its mean over tokens; mean (Lu 2026, "
        "arXiv 2605.06169).",
        "sequences",
        "max",
        histogram=False,
    ),
    Metric("output/logit_mean", "1", "Output logit, mean.", "tokens, vocabulary"),
    Metric("output/logit_max", "1", "Largest output logit.", "tokens, vocabulary"),
    Metric("output/log_z", "nats", "log Z = logsumexp of the output logits, mean.", TOKENS),
    Metric("output/log_z_squared", "nats^2", "(log Z)^2, mean: the target of the z-loss.", TOKENS),
    Metric(
        "output/collapse",
        "share",
        "Share of the tokens whose target has a probability of exactly 1 in fp32, as from a margin of 17 on: softmax "
        "collapse (Prieto et al. 2025, arXiv 2501.04697).",
        TOKENS,
    ),
    Metric(
        "output/zero_loss",
        "share",
        "Share of the tokens whose train/loss is exactly 0; differs from output/collapse with loss.arithmetic only.",
        TOKENS,
    ),
    Metric(
        "output/uncapped_logit_max",
        "1",
        "Largest output logit before loss.soft_cap; all other metrics are taken after the cap.",
        "tokens, vocabulary",
        needs="loss.soft_cap=30",
    ),
    Metric("output/zeta", "1", "The target's standardized logit, mean.", TOKENS, needs="loss=spherical"),
    Metric("output/noise", "1", "Noise subtracted from the target's logit, mean.", TOKENS, needs="loss=noisy_softmax"),
    Metric("output/kept", "share", "Share of the tokens that the loss keeps.", TOKENS, needs="loss=eslm"),
    Metric("output/target_probability", "1", "Probability of the target, mean.", TOKENS, needs="loss=dft"),
    Metric("output/temperature", "1", "Temperature of the output softmax, mean.", TOKENS, needs="loss=tempnet"),
)


def _router(what: str, unit: str, definition: str, taken_over: str, reduced_by: Over) -> Metric:
    by_head = what == "load"
    name = f"router/{{block}}/{what}"
    return Metric(name, unit, definition, taken_over, reduced_by, by_head=by_head, histogram=by_head, needs=EXPERTS)


ROUTER = (
    _router(
        "load",
        "share",
        "Share of an expert in all choices of tokens, before any is dropped; the list has a value per expert, whose "
        "mean is 1 / experts. With mlp.router=merge, mean probability.",
        "batch, tokens",
        "mean",
    ),
    _router("load_max", "share", "Largest load of an expert.", "experts", "max"),
    _router("dropped", "share", "Share of the choices beyond mlp.capacity_factor, which are dropped.", TOKENS, "max"),
    _router("experts", "experts", "Routed experts that a token uses, mean.", TOKENS, "mean"),
    _router("entropy", "nats", "Entropy of the router's probabilities over experts, mean.", TOKENS, "mean"),
    _router("logit_max", "1", "Largest router logit.", "tokens, experts", "max"),
    _router("log_z_squared", "nats^2", "(log sum_e exp z_e)^2, mean: the target of mlp.z_loss.", TOKENS, "max"),
    _router(
        "similarity",
        "1",
        "Cosine of the first matrices of two experts, as vectors, mean over pairs.",
        "pairs of experts",
        "mean",
    ),
)

OPTIMIZER = (
    Metric("parameter/{tensor}/rms", "1", "RMS of the weights before the update.", "elements", "mean"),
    Metric("gradient/{tensor}/rms", "nats", "RMS of the gradient before clipping.", "elements", "mean"),
    Metric("gradient/norm", "nats", "Global L2 norm of the gradient before clipping.", "all parameters"),
    Metric("gradient/zeros", "share", "Share of the elements of the gradient that are exactly 0.", "all parameters"),
    Metric(
        "gradient/cosine_to_weights",
        "1",
        "cos(-g, theta): 1 if a step only scales the weights up, which lowers the loss without changing a prediction "
        "(naive loss minimization of Prieto et al. 2025).",
        "all parameters",
    ),
    Metric(
        "adam/{tensor}/gradient_over_eps",
        "1",
        "RMS of the clipped gradient / the optimizer's epsilon, for tensors whose update has an epsilon.",
        "elements",
        "min",
    ),
    Metric(
        "adam/{tensor}/g_over_sqrt_v_rms",
        "1",
        "RMS_t = sqrt(mean(g^2 / max(v, eps^2))), g the clipped gradient, v the bias-corrected second moment after it "
        "has taken g (Wortsman et al. 2023b, arXiv 2304.13013, algorithm 2). About 1 while gradients keep their size; "
        "spikes above 2.3 came before loss spikes there. Of AdamW and its relatives and Adafactor.",
        "elements",
        "max",
    ),
    Metric("adam/gradient_over_eps_min", "1", "Smallest adam/{tensor}/gradient_over_eps.", "tensors"),
    Metric(
        "update/{tensor}/rms",
        "1",
        "RMS of the change of the weights, including decay, / the tensor's learning rate.",
        "elements",
        "max",
    ),
    Metric(
        "update/{tensor}/cosine",
        "1",
        "Cosine of the change of the weights, including decay, and the weights before it: 0 for a rotation, negative "
        "where the step shrinks them.",
        "elements",
        "mean",
    ),
    Metric(
        "qk_clip/heads",
        "heads",
        "Heads whose query and key weights were scaled down because their largest logit exceeded optimizer.qk_clip.",
        "blocks, heads",
        needs="optimizer.qk_clip=1e-3 qk_norm=none",
    ),
)

SHARPNESS = (
    Metric(
        "sharpness/critical",
        "1",
        "Critical sharpness, 2 over the smallest learning rate at which the step, scaled as a whole, raises the loss "
        "(Kalra et al. 2026, arXiv 2601.16979).",
        "the last micro-batch",
        needs="watch.sharpness=true",
    ),
    Metric(
        "sharpness/over_edge",
        "1",
        "The same over (2 + 2 beta1) / ((1 - beta1) LR), 38 / LR at beta1 0.9: where the preconditioned Hessian makes "
        "Adam unstable (Cohen et al. 2022, arXiv 2207.14484). Where all tensors are Adam's.",
        "the last micro-batch",
        needs="watch.sharpness=true",
    ),
)


def _mean_mode(what: str, unit: str, definition: str) -> Metric:
    name, over = f"mean_mode/{{tensor}}/{what}", "elements"
    return Metric(name, unit, definition, over, "max", histogram=False, needs="watch.mean_mode=true")


MEAN_MODE = (
    _mean_mode(
        "mean",
        "nats",
        "Norm of the part of a gradient that comes from means over tokens, T mean(g) mean(u)^T summed over sequences, "
        "u the input and g the gradient of the output of a matrix that writes to the stream (Lu 2026, arXiv "
        "2605.06169). Before clipping. Without experts and attention=fit.",
    ),
    _mean_mode("rest", "nats", "Norm of the rest, sum_t (g_t - mean(g)) (u_t - mean(u))^T."),
    _mean_mode("ratio", "1", "The first norm over the second."),
    _mean_mode("cosine", "1", "Cosine of both parts."),
)

METRICS = (*TRAINING, *VALIDATED, *ATTENTION, *STATE, *MODEL, *ROUTER, *OPTIMIZER, *SHARPNESS, *MEAN_MODE)
