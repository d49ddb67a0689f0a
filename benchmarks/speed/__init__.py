"""What a training step and a new scan cost, beside peers on the same scans."""
