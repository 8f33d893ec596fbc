"""What every op shares: argument checks, geometry, backend choice, precision, registration and gradients."""
