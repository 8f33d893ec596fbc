"""What every op shares: checks, geometry, backend choice, precision, registration, gradients."""
