"""The tests of unit, assets, integration and browser mirror the package; the others attack or deploy it."""
