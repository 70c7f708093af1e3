"""Integrate RestorMixer and other plug-ins with BasicSR. Importing this package loads no heavy dependency."""
