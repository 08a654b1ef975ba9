"""Take a run's steps again, exactly or with one thing changed.

Needs torch, transformers, safetensors, h5py and numpy; writing a run's pieces needs pyarrow besides.
"""
