"""From a saved run to what is deployed: files in several precisions, how far they are from torch, how fast, and why.

``exporting`` writes and compares the files, ``bench`` times them, ``operators`` says where the time goes,
``model_diff`` what became of every layer, ``report`` puts all of it into one page.
"""
