# One site of a fleet on AWS: an instance and a data volume a node, and one security
# group. `nodes` is the map that the controller generates. See README.md: not run by our tests.

terraform {
  required_version = ">= 1.8"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.60"
    }
  }
}

data "aws_ami" "debian" {
  most_recent = true
  owners      = ["136693071363"] # Debian

  filter {
    name   = "name"
    values = ["debian-12-amd64-*"]
  }
}

resource "aws_security_group" "nodes" {
  name_prefix = "forerun-${var.fleet}-${var.site}-"
  description = "Forerun nodes: gRPC, replication and NBD, from the fleet only"
  vpc_id      = var.vpc_id

  ingress {
    description = "gRPC, replication, NBD; each with mutual TLS"
    from_port   = var.ports.first
    to_port     = var.ports.last
    protocol    = "tcp"
    cidr_blocks = var.fleet_cidrs
  }

  egress {
    description = "The controller, and other nodes' replication"
    from_port   = 0
    to_port     = 0
    protocol    = "-1"
    cidr_blocks = var.fleet_cidrs
  }

  tags = local.tags

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_instance" "node" {
  for_each = var.nodes

  ami                    = data.aws_ami.debian.id
  instance_type          = each.value.shape
  subnet_id              = var.subnet_id
  vpc_security_group_ids = [aws_security_group.nodes.id]
  iam_instance_profile   = var.instance_profile

  # The node fetches its certificate, key and one-time token from the secret that the controller
  # wrote under this name: nothing secret is in user data, in the plan or in the state.
  user_data_replace_on_change = true
  user_data = templatefile("${path.module}/node.sh.tftpl", {
    node       = each.key
    site       = var.site
    controller = var.controller
    secret     = "forerun/${var.fleet}/${each.key}"
    binary_url = var.binary_url
    binary_sum = var.binary_sha256
  })

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  root_block_device {
    encrypted = true
  }

  tags = merge(local.tags, { Name = each.key, "forerun:node" = each.key })

  lifecycle {
    # a shape is changed by a new node, seeding and a cutover, never under a running one
    ignore_changes = [ami]
  }
}

resource "aws_ebs_volume" "data" {
  for_each = var.nodes

  availability_zone = aws_instance.node[each.key].availability_zone
  size              = var.data_gib
  type              = "gp3"
  encrypted         = true
  tags              = merge(local.tags, { Name = each.key, "forerun:node" = each.key })
}

resource "aws_volume_attachment" "data" {
  for_each = var.nodes

  device_name  = "/dev/sdf"
  instance_id  = aws_instance.node[each.key].id
  volume_id    = aws_ebs_volume.data[each.key].id
  force_detach = false
}

locals {
  # every resource carries the fleet and the site, so that what a killed run left can be found by
  # `aws resourcegroupstaggingapi get-resources` and compared with the state
  tags = {
    "forerun:fleet" = var.fleet
    "forerun:site"  = var.site
  }
}
