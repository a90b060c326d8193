"""Terms of the loss: functions of logits or weights that give a scalar."""
