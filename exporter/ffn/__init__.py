"""The gated FFN act(x W_gate) * h(x W_up): where its factors come from, and whether both layers are packed into one.

`product` finds where the two factors come from, `modes` decides which products are packed, and `measurement` says what that is
worth here. `lower.packing` writes them.
"""
