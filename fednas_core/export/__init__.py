"""Models that leave fednas: a folder of weights, ONNX graph, description and card, proved equal before it appears."""
