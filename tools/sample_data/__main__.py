"""Writes the zip of samples that the package ships."""

from tools.sample_data import SAMPLES, write_samples

write_samples()
print(SAMPLES, SAMPLES.stat().st_size)
