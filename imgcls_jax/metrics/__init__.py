"""Classification metrics with their 95% intervals.

`examples` says what is known of each example: a few numbers made on the device, gathered in the order of the data set.
`multiclass.report` and `multilabel.report` turn them into what W/eval/<split>.json holds. The rest are pure functions
on arrays: `intervals`, `ranking`, `calibration`, `paired`.
"""
