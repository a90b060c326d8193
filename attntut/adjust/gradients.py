"""Methods between the backward pass and the step: hooks on gradients, and before or after a step."""
