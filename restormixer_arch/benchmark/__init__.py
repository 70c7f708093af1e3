"""Measure speed, memory and operations of RestorMixer and other networks in one run, for ``basicsr bench``."""
