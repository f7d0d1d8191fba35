"""Linear attention, the base class of rules whose weights are products of features of queries and keys.

    w_ij = phi(q_i) phi(k_j) exp(c_i - c_j),   o_i = sum_j<=i w_ij v_j  or  sum_j<=i w_ij v_j / sum_j<=i w_ij

A position bias multiplies w_ij by exp(bias), as it does softmax's; only then is the T x T matrix computed in training.
Everything is fp32, even under autocast. Probes of logits are of scale q k + bias, for comparison with other rules.

Shape suffixes: B batch, H heads, T tokens, F features, K head dimension, D model width.
"""

import torch

from models.attention.linear_time import Map, linear_attention, weights
from models.attention.mixing.base import Inputs, MixingRule
from models.probes import full_precision

TINY = 1e-12


class LinearAttention(MixingRule):
    normalized = True
    """Whether weights are divided by their row sum."""
    chunk: int | None = None
    """Tokens per chunk; None: the default of `linear_attention`."""
    expand: Map | None = None
    """Maps `features` to the features of the state, if these are too many to compute for every token."""
    kernel: Map | None = None
    """Maps q k^T of `features` to products of expanded features."""
    least = TINY
    """Lower bound of the row sum."""

    def features(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns phi(q) and phi(k), fp32 [B, H, T, F]."""
        return inputs.q_BHTK.float(), inputs.k_BHTK.float()

    def log_decay(self, inputs: Inputs) -> torch.Tensor | None:
        """Returns the log decay of each token, [B, H, T] or [B, H, T, F], or None."""
        return None

    def forward(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        if inputs.bias_HTT is not None:
            return super().forward(inputs, v_BHTK)
        with full_precision(v_BHTK):
            mixed_BHTK = self.mixed(inputs, self.values(v_BHTK, inputs.x_BTD).float())
        return self.finish(mixed_BHTK.to(v_BHTK.dtype), inputs.x_BTD)

    def mixed(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        """Returns the mixed values in linear time, fp32."""
        if self.normalized:
            v_BHTK = torch.cat([v_BHTK, torch.ones_like(v_BHTK[..., :1])], -1)
        out_BHTK = self.summed(inputs, v_BHTK)
        if not self.normalized:
            return out_BHTK
        return out_BHTK[..., :-1] / out_BHTK[..., -1:].clamp_min(self.least)

    def summed(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        """Returns sum_j w_ij v_j, fp32."""
        q_BHTF, k_BHTF = self.features(inputs)
        return linear_attention(
            q_BHTF, k_BHTF, v_BHTK, self.log_decay(inputs), chunk=self.chunk, expand=self.expand, kernel=self.kernel
        )

    def raw_weights(self, inputs: Inputs) -> torch.Tensor:
        """Returns w without the division by its row sum or a position bias, fp32 [B, H, T, T]."""
        return weights(*self.features(inputs), self.log_decay(inputs), self.kernel)

    def biased_weights(self, inputs: Inputs) -> torch.Tensor:
        """Returns w times exp(bias), before the division by the row sum."""
        with full_precision(inputs.q_BHTK):
            w_BHTT = self.raw_weights(inputs)
        return w_BHTT if inputs.bias_HTT is None else w_BHTT * inputs.bias_HTT.tril().exp()

    def weights(self, inputs: Inputs) -> torch.Tensor:
        w_BHTT = self.biased_weights(inputs)
        return w_BHTT / w_BHTT.sum(-1, keepdim=True).clamp_min(self.least) if self.normalized else w_BHTT
