"""All benchmarks: ``python -m benchmarks``."""

from benchmarks import images, likelihood, speed

speed.main()
images.main()
likelihood.main()
