"""The tests mirror the package: unit, assets, integration and browser."""
