"""The public face of the house: gRPC in front, our own types behind."""
