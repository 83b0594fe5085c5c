"""The gated FFN act(x W_gate) * h(x W_up): two layers packed into one, and one `actx::GatedSpline` behind it.

`product` finds where the two factors come from, `packing` writes one layer for two and one node for a product, `modes` says
for which products, and `measurement` what it is worth here.
"""
