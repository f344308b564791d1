"""DeciLM, the format of NVIDIA's Nemotron-NAS models."""
