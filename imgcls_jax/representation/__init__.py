"""How good a representation is: what simple classifiers make of features that are held fixed.

`features` makes them of a split, by a model or by `descriptors` (pixels, HOG, a bag of visual words); `knn` and
`logistic` are the classifiers, pure functions on arrays; `fewshot` draws small training sets. All are for one label an
image. Features lie in the host's memory, [N,D] float32; the classifiers' work is done by this process's devices.
"""
