"""What ``basicsr bench`` measures: speed, memory and operations of RestorMixer beside other networks, in one run."""
