"""Runs and images in, landmarks in image pixels out.

predict     predicts with one view or several, and averages them in image pixels
ensemble    several runs and test-time augmentation as views
predictor   a run as a function of images
submit      a submission from runs, or from other submissions
export      a run as an ONNX or torch.export file
media       annotates images, videos and camera streams
"""
