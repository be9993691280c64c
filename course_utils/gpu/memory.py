"""The arithmetic of memory: what one training step of a language model holds, part by part, in bytes.

The activations are those that autograd keeps for the backward pass of a decoder layer in transformers 5 with fused
attention, counted tensor by tensor; a test counts what really is kept and finds the same. What the formulas do not
know is stated as an assumption: the driver's own memory, and the gaps between tensors.
"""

from __future__ import annotations

from course_utils.gpu.shapes import Shape

# Assumed, not derived: CUDA's own context with its libraries, and what the allocator cannot use.
CONTEXT = 0.7 * 2**30
GAPS = 0.06
OPTIMIZERS = {
    "adamw": 8,
    "adafactor": 0,
}  # bytes of state for each trained weight; adafactor keeps rows and columns only


def layer_bytes_per_token(shape: Shape, products: str) -> int:
    """What one layer keeps of one token until the backward pass.

    products  the format of the matrix products over float32 weights ("float32", "bfloat16", "float16"), or "pure
              bfloat16" when the weights themselves are in bfloat16
    """
    s = shape
    normed = s.heads + s.kv_heads  # one number for each head, if queries and keys are normalised
    if products == "float32":
        # Two norms keep input, normalised input and output; attention keeps q, k, v, its output and a normaliser;
        # the gated layer keeps gate, silu(gate), up and their product.
        elements = 6 * s.hidden + 2 * s.queries + 2 * s.keys + 4 * s.feed_forward + s.heads + 2
        return 4 * (elements + s.qk_norm * (2 * (s.queries + s.keys) + normed))
    # In 16 bits: attention, the feed-forward layer, and under autocast one copy of the input for each matrix.
    short = 2 * (2 * s.queries + 2 * s.keys + 4 * s.feed_forward)
    norms = 16 * s.hidden if products == "pure bfloat16" else 26 * s.hidden
    return short + norms + 4 * s.heads + 8 + s.qk_norm * (6 * (s.queries + s.keys) + 4 * normed)


def activation_bytes(shape: Shape, tokens: int, products: str, checkpointing: bool) -> int:
    """What the layers keep of all tokens. With checkpointing only each layer's input, and one layer while it is redone."""
    layer = layer_bytes_per_token(shape, products)
    if not checkpointing:
        return tokens * shape.layers * layer
    stream = 2 if products == "pure bfloat16" else 4
    return tokens * (shape.layers * stream * shape.hidden + layer)


def backward_bytes(shape: Shape, tokens: int, products: str) -> int:
    """The gradients of one layer's widest tensors, which live for a moment: three of the feed-forward width."""
    return tokens * 3 * shape.feed_forward * (4 if products == "float32" else 2)


def logit_bytes(shape: Shape, predicted: int, chunk: int, products: str) -> int:
    """Our head: a slice of logits in float32 and, in 16 bits, its probabilities; never thinner than 512 words."""
    from course_utils.logprobs import THINNEST

    held = min(max(chunk, predicted * THINNEST), predicted * shape.vocabulary)
    return held * (8 if products == "float32" else 8 + 2)


def ordinary_logit_bytes(shape: Shape, tokens: int, products: str) -> int:
    """The common way, for comparison: logits of every position, their log-softmax in float32, and its gradient."""
    return tokens * shape.vocabulary * (4 if products == "float32" else 2) + tokens * shape.vocabulary * 8


def lora_parameters(shape: Shape, rank: int) -> int:
    """Weights of low-rank adapters at every matrix of every layer."""
    s = shape
    sides = 2 * (s.hidden + s.queries) + 2 * (s.hidden + s.keys) + 3 * (s.hidden + s.feed_forward)
    return s.layers * rank * sides
