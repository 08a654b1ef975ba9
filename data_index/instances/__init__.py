"""Instance rules: which pieces of which token files make up an instance. One trainer rule a file.

Only runs that pad, pack or run documents together need one; where files are cut at fixed lengths, arithmetic tells.
Every rule returns `data_index.pieces.Pieces`.
"""
