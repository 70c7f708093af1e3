"""Everything that ties RestorMixer and other plug-ins to BasicSR. Importing this package imports nothing heavy."""
