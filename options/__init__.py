"""The option files, installed beside the code so that ``basicsr train -opt options/...`` works in any folder."""
