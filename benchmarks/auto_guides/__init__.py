"""``mm.guides.auto`` on eight stories: how far its bounds lie below the exact log p(x_O), in nats per sample.

``python -m benchmarks.auto_guides`` trains and measures, ``python -m benchmarks.auto_guides --report`` writes the page.
The stories (``pyro_mmvae.stories.examples``) have fixed parameters; only the guide is trained, on rows in which
modalities and single cells are hidden. The budget is CPU seconds of one thread.
"""
